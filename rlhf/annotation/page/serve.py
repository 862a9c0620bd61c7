"""`rlhf annotate`: finds or makes the store, and serves its page on this machine."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from rlhf.annotation.exchange import WRITERS, write_exchange
from rlhf.annotation.page.local import address_of, listen, serve_app
from rlhf.annotation.protocol import Pair
from rlhf.annotation.scales import PREFERENCE
from rlhf.annotation.store import Store
from rlhf.annotation.writing import Writing
from rlhf.data.formats import gathered, pairs_of, preference_from
from rlhf.data.loading import domain_of, source_rows, untagged
from rlhf.data.reading import Reading
from rlhf.errors import InputError, notice
from rlhf.imports import require_packages

STORES = ("labels.sqlite", "*.labels.sqlite", "v*/*.labels.sqlite")


def find_store(what: Path, labels: int | None = None) -> Path:
    """The store of a run's folder, a store itself, or the one beside a file of pairs, which is made from it.

    Args:
        what: folder of a run or of its stages; a `.sqlite` file; or a file of pairs (`read_pairs`). Pairs that are
            added to the file later join the store.
        labels: judgements that each pair of a file wants; None: 1, or what the store has.

    Raises:
        InputError: there is no such thing, or no store in the folder; or a row is no pair, with file and line.
    """
    if what.is_dir():
        found = [path for pattern in STORES for path in sorted(what.glob(pattern))]
        if not found:
            raise InputError(
                f"{what}: no judgements are asked for here (there is no labels.sqlite); start the collection with"
                " `annotator: people`, name a file of pairs, or compare two of a run's versions with --compare"
            )
        if len(found) > 1:
            raise InputError(f"{what}: has {len(found)} stores ({', '.join(map(str, found))}); name one of them")
        return found[0]
    file = Path(untagged(what))
    if not file.exists():
        raise InputError(f"{what}: there is no such file or folder; name a run, a .sqlite store or a file of pairs")
    if file.suffix == ".sqlite":
        return file
    pairs = read_pairs(what)
    path = file.with_name(f"{file.name}.labels.sqlite")
    with Store(path) as store:
        wanted = labels if labels is not None else store.labels(file.name) or 1
        store.add_batch(file.name, pairs, labels=wanted)
    return path


def read_pairs(file: Path, *, chosen: bool = False) -> list[Pair]:
    """The pairs of a file: rows of `rlhf.annotation.protocol.Pair`, or preferences of any layout, to be judged anew.

    Of a preference the chosen answer is a. Those that cannot be used are left out, and counted on stderr, as is a pair
    that stands there again. A domain behind the file's name (`pairs.jsonl#safety`) is that of all pairs.

    Args:
        file: JSONL and the like.
        chosen: only preferences will do.

    Raises:
        InputError: a row with a or b is no pair, with file and line; or no row can be used.
    """
    domain = domain_of(file)
    tag = {} if domain is None else {"domain": domain}
    pairs: list[Pair] = []
    reading, first = Reading(), ""
    known: dict[str, Pair] = {}
    for number, rows in gathered(source_rows(file), "preferences"):
        row = rows[0]
        try:
            if {"a", "b"} & row.keys() and not chosen:
                found = [Pair.from_dict({**row, **tag})]
            else:
                given = pairs_of(rows, domain, reading.unused)
                found = [
                    _pair({**plain, **tag}, index if len(given) > 1 else 0) for index, plain in enumerate(given, 1)
                ]
            for pair in found:
                if known.setdefault(pair.id, pair) is not pair and known[pair.id] == pair:
                    reading.leave_out("the same pair stands there before")
                else:
                    pairs.append(pair)
        except InputError as error:
            if "a" in row or "b" in row:
                raise InputError(f"{untagged(file)}:{number}: {error}") from error
            reading.leave_out(str(error))
            first = first or f"{untagged(file)}:{number}: {error}"
    if not pairs:
        raise InputError(first if chosen else f"{first}; a pair that nobody judged has messages, a and b")
    for sentence in reading.sentences(untagged(file), len(pairs)):
        notice(sentence)
    return pairs


def _pair(plain: dict[str, Any], index: int) -> Pair:
    """Of one of `pairs_of`'s rows; one that has no id is named by its content."""
    given = plain.get("id")
    preference = preference_from({**plain, "id": "unnamed" if given is None else str(given)})
    name = "" if given is None else f"{preference.id}.{index}" if index else preference.id
    return Pair(preference.messages, preference.chosen, preference.rejected, preference.domain, name)


def serve(path: Path, *, port: int = 8642, guidelines: Path | None = None, writing: Writing | None = None) -> None:
    """Serve the page of a store until it is interrupted; the address, secret and all, is printed first.

    The same store has the same address each time: an open page goes on when the server is back. `writing` is what
    people write there, beside what they judge.

    Raises:
        InputError: the port is taken, the guidelines cannot be read, or the extra `annotate` is not installed.
    """
    require_packages("annotate: the page needs", "fastapi", "uvicorn", "markdown_it")
    try:
        text = None if guidelines is None else guidelines.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"guidelines: {guidelines} cannot be read ({error}); name a Markdown file") from error
    listener = listen(port)
    from rlhf.annotation.page.app import default_guidelines, make_app

    with Store(path, durable=True) as store:
        people = store.batches(people=True)
        if not people and writing is None:
            listener.close()
            raise InputError(
                f"{path}: has no pairs for people; name a file of pairs, a run that asks people, or with --compare one "
                "whose versions are compared"
            )
        token = store.setting("token", lambda: secrets.token_urlsafe(24))
        scale = store.scale(people[0]) if people else PREFERENCE
        shown = text if text is not None else default_guidelines(scale, writing.mode if writing else None)
        owner = store.setting("owner token", lambda: secrets.token_urlsafe(24))
        app = make_app(store, token, shown, writing, owner)
        progress = [store.progress(batch) for batch in people]
        wanted, kept = sum(batch.wanted for batch in progress), sum(batch.kept for batch in progress)
        print(f"{kept} of {wanted} judgements are there, in {path}" if writing is None else f"all is kept in {path}")
        print(f"open {address_of(listener, token)} in a browser of this machine; Ctrl-C ends, everything is kept")
        print(f"for you alone, how annotators agree, their pace and gold: {address_of(listener, owner)}", flush=True)
        serve_app(app, listener)


def export(path: Path, output: Path, rows: str = "preferences") -> int:
    """Write what people judged or wrote as rows (`rlhf.annotation.writing.written_rows`); return how many."""
    from rlhf.annotation.page.app import export_lines

    if output.exists():
        raise InputError(f"export: {output} exists already; name another file, or remove it")
    with Store(path) as store:
        if rows in WRITERS:
            if output.suffix != ".json":
                raise InputError(f"export: {output} must end in .json for {rows}: it is one list, not a row a line")
            output.parent.mkdir(parents=True, exist_ok=True)
            return write_exchange(store, rows, output)
        lines = list(export_lines(store, rows))
    if not lines:
        raise InputError(f"export: {path} has no {rows} yet")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(lines), encoding="utf-8")
    return len(lines)
