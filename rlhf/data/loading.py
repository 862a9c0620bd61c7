"""Prompts, preferences, conversations and texts from any source, into the row types.

    load_preferences("../shared/data/hh-rlhf/helpful-base.jsonl.gz", on_bad_row="skip")
    load_preferences("Anthropic/hh-rlhf/harmless-base:train", domain="safety", on_bad_row="skip")  # through `datasets`
    load_preferences("openai/summarize_from_feedback/comparisons@refs/convert/parquet:validation")
    load_prompts("prompts.jsonl")

A source is a local file (formats: `rlhf.data.jsonl.read_rows`), a local folder that `datasets` reads, or a hub name
`org/name[/part][@revision][:split]` (split: train). The part is a configuration of the set where it has one of that
name, else a folder. A row's format is recognised by its fields (`rlhf.data.formats`; the open preference sets:
`rlhf.data.open_preferences`). A bad row is refused with file and line or, on request, skipped: counted by reason and
reported on stderr, never silently.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlhf.conversation import Conversation
from rlhf.data.formats import conversation_of, preference_of, prompt_of, text_of
from rlhf.data.jsonl import file_format, read_rows
from rlhf.data.open_preferences import comparisons_of, successive
from rlhf.data.rows import Domain, Preference, Prompt
from rlhf.errors import InputError

Source = str | os.PathLike[str]
OnBadRow = Literal["refuse", "skip"]
Row = TypeVar("Row")

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?(?:@([\w./-]+))?(?::([\w\[\]:%+-]+))?")
_PARQUET_COPY = "refs/convert/parquet"  # the hub's own copy of a set, a folder a configuration


def load_preferences(
    source: Source,
    *,
    domain: Domain | None = None,
    on_bad_row: OnBadRow = "refuse",
    skipped: Counter[str] | None = None,
) -> list[Preference]:
    """Preference rows of any known format; where one row of the source makes several pairs, their ids are `<id>.<i>`.

    Args:
        source: file, folder or hub name.
        domain: replaces the rows' own tag (which is helpfulness where a row has none); of PKU-SafeRLHF's two
            comparisons, "safety" takes the safer answer.
        on_bad_row: "refuse" raises InputError at the first bad row; "skip" leaves it out and counts it.
        skipped: what was left out is added here, by reason.
    """
    return _load(source, preference_of, on_bad_row, skipped, domain, pairs=True)


def load_prompts(
    source: Source,
    *,
    domain: Domain | None = None,
    on_bad_row: OnBadRow = "refuse",
    skipped: Counter[str] | None = None,
) -> list[Prompt]:
    """Prompt rows of any known format, with ids that are unique (InputError); arguments as for `load_preferences`."""
    prompts = _load(source, prompt_of, on_bad_row, skipped, domain)
    counts = Counter(prompt.id for prompt in prompts)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{source}: the id {twice!r} stands at {counts[twice]} prompts; give each its own, or none")
    return prompts


def load_conversations(
    source: Source, *, on_bad_row: OnBadRow = "refuse", skipped: Counter[str] | None = None
) -> list[Conversation]:
    """Dialogues that end with an answer: `messages`, or `prompt` and `completion`."""
    return _load(source, conversation_of, on_bad_row, skipped)


def load_texts(source: Source, *, on_bad_row: OnBadRow = "refuse", skipped: Counter[str] | None = None) -> list[str]:
    """Rows with a `text`; of a .txt file each line."""
    return _load(source, text_of, on_bad_row, skipped)


def load_pretraining(
    source: Source, *, on_bad_row: OnBadRow = "refuse", skipped: Counter[str] | None = None
) -> list[str | Conversation]:
    """Rows with a `text`, or a dialogue to be rendered by the chat template that the model will have."""

    def convert(row: Mapping[str, Any]) -> str | Conversation:
        return conversation_of(row) if "messages" in row else text_of(row)

    return _load(source, convert, on_bad_row, skipped)


def _load(
    source: Source,
    convert: Callable[[Mapping[str, Any]], Row],
    on_bad_row: OnBadRow,
    skipped: Counter[str] | None,
    domain: Domain | None = None,
    *,
    pairs: bool = False,
) -> list[Row]:
    if on_bad_row not in ("refuse", "skip"):
        raise InputError(f"on_bad_row: must be refuse or skip, got {on_bad_row!r}")
    name = Path(source).name
    for suffix in (".gz", ".zst", f"{file_format(name)}"):
        name = name.removesuffix(suffix)
    tag = {} if domain is None else {"domain": domain}
    rows: list[Row] = []
    reasons: Counter[str] = Counter()

    def bad(number: int, error: InputError) -> None:
        if on_bad_row == "refuse":
            raise InputError(f"{source}:{number}: {error}") from error
        reasons[reason(str(error))] += 1

    for number, raw in successive(source_rows(source)) if pairs else source_rows(source):
        given = raw.get("id")
        first_id = f"{name}:{number}" if given is None else str(given)
        try:
            parts = comparisons_of(raw, domain) if pairs else [raw]
        except InputError as error:
            bad(number, error)
            continue
        for index, part in enumerate(parts, start=1):
            row_id = first_id if len(parts) == 1 else f"{first_id}.{index}"
            try:
                rows.append(convert({**part, "source": part.get("source") or name, "id": row_id, **tag}))
            except InputError as error:
                bad(number, error)
    if reasons:
        detail = "; ".join(f"{count} x {why}" for why, count in reasons.most_common())
        print(f"{source}: skipped {reasons.total()} of {reasons.total() + len(rows)} rows: {detail}", file=sys.stderr)
        if skipped is not None:
            skipped.update(reasons)
    if not rows:
        raise InputError(f"{source}: none of its {reasons.total()} rows can be used: {next(iter(reasons))}")
    return rows


def reason(message: str) -> str:
    """An error's sentence without the value it quotes, so that equal mistakes count together."""
    return re.split(r",? got |, ['\"]|; its fields| at message \d", message, maxsplit=1)[0]


def is_local(source: Source) -> bool:
    """Whether the source is a file or folder of this machine, whose content can be an input, and no hub name."""
    return file_format(source) is not None or Path(source).exists()


def source_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a source as they stand there, one at a time."""
    if Path(source).is_dir():
        return _from_datasets(source, os.fspath(source))
    if is_local(source):
        return read_rows(source)
    found = _HUB_NAME.fullmatch(os.fspath(source))
    if found is None:
        raise InputError(f"{source}: neither an existing file nor a hub name such as org/name:train")
    return _from_datasets(source, *found.groups())


def _from_datasets(
    source: Source, name: str, part: str | None = None, revision: str | None = None, split: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    import datasets

    try:
        is_configuration = part is not None and part in datasets.get_dataset_config_names(name, revision=revision)
        where = {"name" if is_configuration else "data_dir": part}
        rows = datasets.load_dataset(name, **where, revision=revision, split=split or "train")
    except Exception as error:  # datasets and the hub client raise many kinds: no such name, split, network
        why = " ".join(str(error).split())[:300]
        if "scripts are no longer supported" in why:
            why = f"it is a script; name the hub's copy: {name}/{part or 'default'}@{_PARQUET_COPY}"
        raise InputError(f"{source}: `datasets` cannot load it ({why})") from error
    return enumerate((dict(row) for row in rows), start=1)
