"""A JSONL file that somebody fills in, with whatever tool they like, and gives back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import left_of
from rlhf.errors import InputError
from rlhf.jsonl import read_rows

# what is filled in: first, second (or null); a strength; true, false or null; why there is no choice; who judges
BLANK: dict[str, Any] = {
    "choice": None,
    "strength": None,
    "first_safe": None,
    "second_safe": None,
    "skipped": "",
    "annotator": "",
}


class FilledIn:
    """Writes pairs to a file, one a line, and reads the judgements that were filled in.

    A line has `pair`, `domain`, `messages`, the answers `first` and `second` (in an order that is drawn), and the
    fields of `BLANK`. Pairs that the file lacks are added at its end; what is filled in is never touched.

    Args:
        file: JSONL.
    """

    name = "file"
    asked = "file"

    def __init__(self, file: Path) -> None:
        self._file = file

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        """Judgements of the lines that are filled in; on stderr, how many are not, and what to do.

        Raises:
            InputError: with file and line, where a line cannot be read.
        """
        wanted = {pair.id: pair for pair in pairs}
        rows = list(read_rows(self._file)) if self._file.exists() and self._file.stat().st_size else []
        there = {row.get("pair") for _, row in rows}
        missing = [pair for pair in wanted.values() if pair.id not in there]
        blank = len(missing)
        for number, row in rows:
            pair = wanted.get(str(row.get("pair")))
            if pair is None:
                continue
            if row.get("choice") is None and not row.get("skipped"):
                blank += 1
                continue
            try:
                yield _judgement(pair, row)
            except InputError as error:
                raise InputError(f"{self._file}:{number}: {error}") from error
        if missing:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(_row(pair), ensure_ascii=False) + "\n" for pair in missing)
        if blank:
            fill = "choice (first or second), strength and the safety labels, or skipped"
            print(f"{self._file}: {blank} pairs wait for {fill}; then start again", file=sys.stderr)


def _row(pair: Pair) -> dict[str, Any]:
    first, second = (pair.a, pair.b) if left_of(pair.id, FilledIn.name) == "a" else (pair.b, pair.a)
    shown = {"pair": pair.id, "domain": pair.domain, "messages": pair.messages, "first": first, "second": second}
    return shown | BLANK


def _judgement(pair: Pair, row: dict[str, Any]) -> Judgement:
    who, left = str(row.get("annotator") or FilledIn.name), left_of(pair.id, FilledIn.name)
    choice = row.get("choice")
    if choice is None:
        return Judgement(pair.id, who, None, left=left, skipped=str(row["skipped"]))
    if choice not in ("first", "second"):
        raise InputError(f"choice: must be first, second or null, got {choice!r}")
    other = "second" if choice == "first" else "first"
    chosen = left if choice == "first" else "b" if left == "a" else "a"
    labels = row.get(f"{choice}_safe"), row.get(f"{other}_safe")
    return Judgement(pair.id, who, chosen, row.get("strength"), *labels, left)
