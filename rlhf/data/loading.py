"""Prompts, preferences, conversations and texts from any source, into the row types.

    load_preferences("../shared/data/hh-rlhf/helpful-base.jsonl.gz", on_bad_row="skip")
    load_preferences("Anthropic/hh-rlhf/harmless-base:train", domain="safety", on_bad_row="skip")  # through `datasets`
    load_preferences("openai/summarize_from_feedback/comparisons@refs/convert/parquet:validation")
    load_prompts("prompts.jsonl")

A source is a local file (formats: `rlhf.jsonl.read_rows`), a local folder that `datasets` reads or has saved, or a
hub name `org/name[/part][@revision][:split]` (split: train). The part is a configuration of the set where it has one of
that name, else a folder. Behind any of them `#helpfulness` or `#safety` says what all its rows are about, and
`#package.module:LAYOUT` names a layout of one's own to read them by. The layout of a row is recognised by its fields
(`rlhf.data.formats`). A bad row is refused with file and line or, on request,
skipped: counted by reason and reported on stderr, never silently; so are fields that are not read.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_args

from rlhf.conversation import Conversation
from rlhf.data.formats import (
    conversation_of,
    gathered,
    of_layout,
    pairs_of,
    preference_from,
    prompt_of,
    register,
    text_of,
)
from rlhf.data.layouts.declaration import Format, Kind
from rlhf.data.reading import Reading
from rlhf.data.rows import Domain, Preference, Prompt
from rlhf.errors import InputError, notice
from rlhf.imports import import_object
from rlhf.jsonl import file_format, read_rows

Source = str | os.PathLike[str]
Sources = str | tuple[str, ...]  # of a config: one name needs no list
OnBadRow = Literal["refuse", "skip"]
Row = TypeVar("Row")

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?(?:@([\w./-]+))?(?::([\w\[\]:%+-]+))?")
_PARQUET_COPY = "refs/convert/parquet"  # the hub's own copy of a set, a folder a configuration


def sources_of(sources: Sources | Sequence[Source]) -> tuple[str, ...]:
    """One name or several, as several."""
    return (sources,) if isinstance(sources, str) else tuple(os.fspath(source) for source in sources)


def _tags(source: Source) -> tuple[str, Domain | None, str | None]:
    """A source's name without its tags, the domain and the layout that these give its rows; a tag begins with #.

    Raises:
        InputError: what stands behind a # is neither a domain nor an import path, or there are two of a kind.
    """
    name, domain, layout = os.fspath(source), None, None
    while "#" in name and not Path(name).exists():
        name, _, tag = name.rpartition("#")
        if tag in get_args(Domain) and domain is None:
            domain = cast(Domain, tag)
        elif ":" in tag and layout is None:
            layout = tag
        else:
            raise InputError(
                f"{os.fspath(source)}: after # comes helpfulness or safety, or package.module:LAYOUT of your own, got "
                f"{tag!r} (source: {name})"
            )
    return name, domain, layout


def domain_of(source: Source) -> Domain | None:
    """The domain that a source's name gives all its rows (`rows.jsonl#safety`); None: it gives none.

    Raises:
        InputError: what stands behind the # is no tag.
    """
    return _tags(source)[1]


def untagged(source: Source) -> str:
    """A source's name without the domain and the layout that it gives its rows."""
    return _tags(source)[0]


def use_layout(source: Source) -> Format | None:
    """Register the layout that a source's name gives its rows (`rows.jsonl#my_package.layouts:MINE`), if it gives one.

    Raises:
        InputError: it cannot be imported, or is no `Format`.
    """
    spec = _tags(source)[2]
    if spec is None:
        return None
    layout = import_object("layout", spec)
    if not isinstance(layout, Format):
        raise InputError(f"{spec}: is a {type(layout).__name__}; name a rlhf.data.layouts.declaration.Format")
    return register(layout)


def source_path(source: Source) -> Path | None:
    """Where a source is on this machine, without its domain; None for a hub name."""
    return Path(untagged(source)) if is_local(source) else None


def repository_of(source: Source) -> str | None:
    """The hub's org/name of a source, without part, revision and split; None for a file or folder of this machine."""
    found = None if is_local(source) else _HUB_NAME.fullmatch(untagged(source))
    return None if found is None else found[1]


def load_preferences(
    source: Source,
    *,
    domain: Domain | None = None,
    on_bad_row: OnBadRow = "refuse",
    skipped: Counter[str] | None = None,
) -> list[Preference]:
    """Preference rows of any known layout; where one row of the source makes several pairs, their ids are `<id>.<i>`.

    Args:
        source: file, folder or hub name.
        domain: replaces the rows' own tag and the source's; of PKU-SafeRLHF's two comparisons, "safety" takes the
            safer answer.
        on_bad_row: "refuse" raises InputError at the first bad row; "skip" leaves it out and counts it.
        skipped: what was left out is added here, by reason.
    """
    return _load(source, preference_reader(source, domain), on_bad_row, skipped)


def load_prompts(
    source: Source,
    *,
    domain: Domain | None = None,
    on_bad_row: OnBadRow = "refuse",
    skipped: Counter[str] | None = None,
) -> list[Prompt]:
    """Prompt rows of any known layout, with ids that are unique (InputError); arguments as for `load_preferences`."""
    prompts = _load(source, prompt_reader(source, domain), on_bad_row, skipped)
    counts = Counter(prompt.id for prompt in prompts)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{source}: the id {twice!r} stands at {counts[twice]} prompts; give each its own, or none")
    return prompts


def load_conversations(
    sources: Source | Sequence[Source], *, on_bad_row: OnBadRow = "refuse", skipped: Counter[str] | None = None
) -> list[Conversation]:
    """Dialogues of one source or of several that end with an answer: `messages`, or `prompt` and `completion`, …"""
    names = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    return [row for source in names for row in _load(source, conversation_reader(), on_bad_row, skipped)]


def load_texts(source: Source, *, on_bad_row: OnBadRow = "refuse", skipped: Counter[str] | None = None) -> list[str]:
    """Rows with a `text`; of a .txt file each line."""
    return _load(
        source, Reader(None, lambda rows, unused: rows, lambda row, own, unused: text_of(row)), on_bad_row, skipped
    )


def load_pretraining(
    source: Source, *, on_bad_row: OnBadRow = "refuse", skipped: Counter[str] | None = None
) -> list[str | Conversation]:
    """Rows with a `text`, or a dialogue to be rendered by the chat template that the model will have."""

    def make(row: dict[str, Any], own: dict[str, Any], unused: Counter[str]) -> str | Conversation:
        return conversation_of(row, unused) if "messages" in row or "conversations" in row else text_of(row)

    return _load(source, Reader(None, lambda rows, unused: rows, make), on_bad_row, skipped)


@dataclass(frozen=True)
class Reader(Generic[Row]):
    """How an item of a source (rows that belong together, mostly one) becomes rows of ours.

    Args:
        kind: what it is read as; None: every row by itself.
        parts: (rows of an item, names of fields not used) -> its parts, each of which is good or bad by itself.
        make: (part, what the loader knows: id, source, number, names of fields not used) -> the row of ours.
    """

    kind: Kind | None
    parts: Callable[[list[dict[str, Any]], Counter[str]], list[Any]]
    make: Callable[[Any, dict[str, Any], Counter[str]], Row]


def conversation_reader() -> Reader[Conversation]:
    """Of SFT rows."""
    return Reader("sft", lambda rows, unused: [rows], lambda rows, own, unused: conversation_of(rows, unused))


def prompt_reader(source: Source, domain: Domain | None = None) -> Reader[Prompt]:
    """Of prompts; the domain, or else that of the source's name, replaces the rows' own."""
    tag = _tag(domain or domain_of(source))

    def make(rows: list[dict[str, Any]], own: dict[str, Any], unused: Counter[str]) -> Prompt:
        return prompt_of([{**row, "id": own["id"], **tag} for row in rows], unused, own["source"])

    return Reader("prompts", lambda rows, unused: [rows], make)


def preference_reader(
    source: Source, domain: Domain | None = None, untagged_domain: Domain | None = None
) -> Reader[Preference]:
    """Of preferences, arguments as for `load_preferences` and `rlhf.data.sharing.SharedReading.read`."""
    given = domain or domain_of(source)
    local = is_local(source)
    first: list[tuple[int, bool]] = []

    def tag_of(pair: dict[str, Any], number: int) -> Domain | None:
        if given is not None or untagged_domain is None:
            return given
        own = pair.get("domain")
        tagged = own is not None if local else own in get_args(Domain)  # a hub set may call something else a domain
        if local:
            first.append((number, tagged))
            if first[0][1] != tagged:
                raise _WholeFile(
                    f"this row {'names a' if tagged else 'has no'} domain, unlike row {first[0][0]}; give every row "
                    "its domain, or put the rows without one into a file of their own"
                )
            del first[1:]
        return None if tagged else untagged_domain

    def make(pair: dict[str, Any], own: dict[str, Any], unused: Counter[str]) -> Preference:
        return preference_from({**own, **pair, "id": own["id"], **_tag(tag_of(pair, own["number"]))})

    return Reader("preferences", lambda rows, unused: pairs_of(rows, given or untagged_domain, unused), make)


def _tag(domain: Domain | None) -> dict[str, Any]:
    return {} if domain is None else {"domain": domain}


class _WholeFile(InputError):
    """A mistake of the whole file, which skipping a row does not mend."""


def _load(source: Source, reader: Reader[Row], on_bad_row: OnBadRow, skipped: Counter[str] | None) -> list[Row]:
    return list(read_source(source, reader, on_bad_row, skipped))


def read_source(
    source: Source, reader: Reader[Row], on_bad_row: OnBadRow, skipped: Counter[str] | None
) -> Iterator[Row]:
    """The rows of a source one by one; what was left out is said and counted last, and none at all is refused."""
    reading, kept = Reading(), 0
    for _, row in converted(source, reader, on_bad_row, reading):
        kept += 1
        yield row
    for line in reading.sentences(untagged(source), kept):
        notice(line)
    if skipped is not None:
        skipped.update(reading.left_out)
    if not kept:
        why = next(iter(reading.left_out))
        raise InputError(f"{source}: none of its {reading.left_out.total()} rows can be used: {why}")


def converted(source: Source, reader: Reader[Row], on_bad_row: OnBadRow, reading: Reading) -> Iterator[tuple[int, Row]]:
    """(number, row of ours) of a source; a bad row is refused with its number, or counted in `reading`."""
    if on_bad_row not in ("refuse", "skip"):
        raise InputError(f"on_bad_row: must be refuse or skip, got {on_bad_row!r}")
    name = short_name(source)

    def bad(number: int, error: Exception) -> None:
        why = "is nested too deeply to be read" if isinstance(error, RecursionError) else str(error)
        if on_bad_row == "refuse" or isinstance(error, _WholeFile):
            raise InputError(f"{untagged(source)}:{number}: {why}") from error
        reading.leave_out(why)

    for number, rows in gathered(source_rows(source), reader.kind):
        given = rows[0].get("id")
        first_id = f"{name}:{number}" if given is None else str(given)
        try:
            parts = reader.parts(rows, reading.unused)
        except (InputError, RecursionError) as error:
            bad(number, error)
            continue
        for index, part in enumerate(parts, start=1):
            row_id = first_id if len(parts) == 1 else f"{first_id}.{index}"
            try:
                row = reader.make(part, {"id": row_id, "source": name, "number": number}, reading.unused)
            except (InputError, RecursionError) as error:
                bad(number, error)
            else:
                reading.see(row)
                yield number, row


def short_name(source: Source) -> str:
    """The file's name without its endings: what ids begin with, and the source of rows that name none."""
    name = Path(untagged(source)).name
    for suffix in (".gz", ".zst", f"{file_format(name)}"):
        name = name.removesuffix(suffix)
    return name


def is_local(source: Source) -> bool:
    """Whether the source is a file or folder of this machine, whose content can be an input, and no hub name."""
    name = untagged(source)
    return file_format(name) is not None or Path(name).exists()


def source_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a source as they stand there, one at a time; its own layout is known from then on.

    Raises:
        InputError: it cannot be read; or, at its end, no row of it had the layout that its name gives them.
    """
    layout = use_layout(source)
    rows = _rows(untagged(source))
    return rows if layout is None else of_layout(rows, layout, os.fspath(source))


def _rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if not name:  # which is the working folder to pathlib
        raise InputError("rows: an empty name; name a file, a folder or a set of the hub")
    if Path(name).is_dir():
        return (
            _saved(name)
            if (Path(name) / "dataset_info.json").exists() or _parts_saved(name)
            else _from_datasets(name, name)
        )
    if is_local(name):
        return read_rows(name)
    found = _HUB_NAME.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: neither an existing file nor a hub name such as org/name:train")
    return _from_datasets(name, *found.groups())


def _is_saved(folder: str) -> bool:
    return (Path(folder) / "state.json").exists() and (Path(folder) / "dataset_info.json").exists()


def _parts_saved(folder: str) -> bool:
    return (Path(folder) / "dataset_dict.json").exists()


def _saved(folder: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a folder that `save_to_disk` wrote; of one with several splits, those of train."""
    import datasets

    parts = _parts_saved(folder)
    if parts and not (Path(folder) / "train").is_dir():
        splits = ", ".join(sorted(path.name for path in Path(folder).iterdir() if path.is_dir()))
        raise InputError(f"{folder}: has no split train; name the folder of one of its splits: {splits}")
    try:
        rows = datasets.load_from_disk(os.path.join(folder, "train") if parts else folder)
    except Exception as error:  # a folder that is no whole set: many kinds
        raise InputError(f"{folder}: `datasets` cannot load it ({' '.join(str(error).split())[:300]})") from error
    return enumerate((dict(row) for row in rows), start=1)


def _from_datasets(
    source: Source, name: str, part: str | None = None, revision: str | None = None, split: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    import datasets

    log = logging.getLogger("datasets")  # it writes a traceback of a file that it cannot read, beside raising
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        is_configuration = part is not None and part in datasets.get_dataset_config_names(name, revision=revision)
        where = {"name" if is_configuration else "data_dir": part}
        rows = datasets.load_dataset(name, **where, revision=revision, split=split or "train")
    except Exception as error:  # datasets and the hub client raise many kinds: no such name, split, network
        why = " ".join(str(error).split())[:300]
        if "scripts are no longer supported" in why:
            why = f"it is a script; name the hub's copy: {name}/{part or 'default'}@{_PARQUET_COPY}"
        raise InputError(f"{source}: `datasets` cannot load it ({why})") from error
    finally:
        log.setLevel(level)
    return enumerate((dict(row) for row in rows), start=1)
