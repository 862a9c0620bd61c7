"""`rlhf annotate`: finds or makes the store, and serves its page on this machine."""

from __future__ import annotations

import secrets
from pathlib import Path

from rlhf.annotation.exchange import WRITERS, write_exchange
from rlhf.annotation.page.local import address_of, listen, require_packages, serve_app
from rlhf.annotation.protocol import Pair
from rlhf.annotation.scales import PREFERENCE
from rlhf.annotation.store import Store
from rlhf.annotation.writing import Writing
from rlhf.errors import InputError
from rlhf.jsonl import read_rows

STORES = ("labels.sqlite", "*.labels.sqlite", "v*/*.labels.sqlite")


def find_store(what: Path, labels: int | None = None) -> Path:
    """The store of a run's folder, a store itself, or the one beside a file of pairs, which is made from it.

    Args:
        what: folder of a run or of its stages; a `.sqlite` file; or a file of pairs or preferences (rows of
            `rlhf.annotation.protocol.Pair`, JSONL and the like). Pairs that are added to the file later join the store.
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
    if not what.exists():
        raise InputError(f"{what}: there is no such file or folder; name a run, a .sqlite store or a file of pairs")
    if what.suffix == ".sqlite":
        return what
    pairs: list[Pair] = []
    for number, row in read_rows(what):
        try:
            pairs.append(Pair.from_dict(row))
        except InputError as error:
            raise InputError(f"{what}:{number}: {error}") from error
    path = what.with_name(f"{what.name}.labels.sqlite")
    with Store(path) as store:
        store.add_batch(what.name, pairs, labels=labels or 1)
    return path


def serve(path: Path, *, port: int = 8642, guidelines: Path | None = None, writing: Writing | None = None) -> None:
    """Serve the page of a store until it is interrupted; the address, secret and all, is printed first.

    The same store has the same address each time: an open page goes on when the server is back. `writing` is what
    people write there, beside what they judge.

    Raises:
        InputError: the port is taken, the guidelines cannot be read, or the extra `annotate` is not installed.
    """
    require_packages("annotate", "fastapi", "uvicorn", "markdown_it")
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


def gold_pairs(file: Path) -> list[Pair]:
    """The pairs of preference rows whose choice is known to be right, the chosen answer as a.

    Raises:
        InputError: a row is no preference, with file and line.
    """
    pairs = []
    for number, row in read_rows(file):
        if not {"chosen", "rejected"} <= row.keys():
            raise InputError(f"{file}:{number}: gold needs preference rows, with chosen and rejected")
        try:
            pairs.append(Pair.from_dict(row))
        except InputError as error:
            raise InputError(f"{file}:{number}: {error}") from error
    return pairs


def export(path: Path, output: Path, rows: str = "preferences") -> int:
    """Write what people judged or wrote as rows (`rlhf.annotation.writing.written_rows`); return how many."""
    from rlhf.annotation.page.app import export_lines

    if output.exists():
        raise InputError(f"export: {output} exists already; name another file, or remove it")
    with Store(path) as store:
        if rows in WRITERS:
            output.parent.mkdir(parents=True, exist_ok=True)
            return write_exchange(store, rows, output)
        lines = list(export_lines(store, rows))
    if not lines:
        raise InputError(f"export: {path} has no {rows} yet")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(lines), encoding="utf-8")
    return len(lines)
