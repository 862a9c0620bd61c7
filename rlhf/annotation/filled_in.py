"""A JSONL file that somebody fills in, with whatever tool they like, and gives back."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import Store, left_of
from rlhf.errors import InputError, quoted
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
Said = tuple[str, str]  # the id of a pair, and who judges it


class FilledIn:
    """Writes the pairs of a batch to a file, one a line, and reads the judgements that were filled in.

    A line has `pair`, `domain`, `messages`, the answers `first` and `second` (in an order that is drawn), and the
    fields of `BLANK`. A pair that wants several judgements has as many lines, for annotators of different names. Lines
    that the file lacks are added at its end; what is filled in is never touched. The file has the last word: where a
    judgement was changed in it, the one before is taken back. A line that was emptied takes nothing back.

    Args:
        file: JSONL.
        store: the file that the judgements are kept in.
        batch: its batch that is judged.
    """

    name = "file"
    asked = "file"

    def __init__(self, file: Path, store: Path, batch: str) -> None:
        if file.suffix != ".jsonl":
            raise InputError(f"annotator_options.file: must be a file that ends in .jsonl, got {quoted(str(file))}")
        self._file, self._path, self._batch = file, store, batch

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        """The judgements of lines that the store does not have yet, whatever its `pairs`: a line may be changed later.

        Says on stderr how many pairs are not filled in, and what to do; and which lines count for nothing.

        Raises:
            InputError: with file and line, where a line cannot be read, is about other texts than those that were
                written, or contradicts another one.
        """
        with Store(self._path) as store:
            known = {pair.id: pair for pair in store.pairs(self._batch)}
            kept = {(j.pair, j.annotator): (number, j) for number, _, _, j in store.judged(self._batch)}
            wanted = store.labels(self._batch) or 1
            judged = Counter(pair for pair, _ in kept)
            said: dict[Said, tuple[int, Judgement]] = {}
            empty: Counter[str] = Counter()
            strange = late = changed = 0
            for number, row in self._rows():
                try:
                    judgement = _judgement(known, row)
                    if judgement is None:
                        empty[row["pair"]] += 1
                        continue
                    if judgement.pair not in known:
                        strange += 1
                        continue
                    key = judgement.pair, judgement.annotator
                    line, before = said.setdefault(key, (number, judgement))
                    if not _alike(before, judgement):
                        raise InputError(
                            f"pair: {judgement.annotator} judges it otherwise in line {line}; leave one of the two, or "
                            "name another annotator"
                        )
                except InputError as error:
                    raise InputError(f"{self._file}:{number}: {error}") from error
                if key not in kept:
                    late += judged[key[0]] >= wanted
                    judged[key[0]] += 1
                    yield judgement
                elif not _alike(kept[key][1], judgement):
                    changed += 1
                    store.undo(judgement.annotator, number=kept[key][0])
                    yield judgement
                kept[key] = 0, judgement
        self._write([pair for pair in known.values() for _ in range(wanted - judged[pair.id] - empty[pair.id])])
        waiting = sum(judged[pair] < wanted for pair in known)
        for count, what in (
            (changed, "judgements have changed; as they are now, they count"),
            (strange, "lines that are filled in name no pair of this batch; they count for nothing"),
            (late, "lines come too late: others have judged their pairs; they count for nothing"),
            (waiting, f"pairs wait for {_wanted_words(wanted)}; then start again"),
        ):
            if count:
                print(f"{self._file}: {count} {what}", file=sys.stderr)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._file.exists() and self._file.stat().st_size:
            yield from read_rows(self._file)

    def _write(self, pairs: Iterable[Pair]) -> None:
        """Add a line for each at the file's end, at once, so that a kill leaves no half of one."""
        lines = "".join(json.dumps(_row(pair), ensure_ascii=False) + "\n" for pair in pairs)
        if not lines:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, 2)
                lines = "\n" * (stream.read(1) != b"\n") + lines
            stream.write(lines.encode())


def _wanted_words(wanted: int) -> str:
    words = "choice (first or second), strength and the safety labels, or skipped"
    return words if wanted == 1 else f"{words}, from {wanted} annotators each, by their names in annotator"


def _row(pair: Pair) -> dict[str, Any]:
    return {"pair": pair.id, "domain": pair.domain, **_texts(pair), **BLANK}


def _texts(pair: Pair) -> dict[str, Any]:
    first, second = (pair.a, pair.b) if left_of(pair.id, FilledIn.name) == "a" else (pair.b, pair.a)
    return {"messages": pair.messages, "first": first, "second": second}


def _judgement(known: Mapping[str, Pair], row: Mapping[str, Any]) -> Judgement | None:
    """What a line says; None where it is not filled in. The texts of a pair that is not known are not looked at."""
    id, choice, skipped = row.get("pair"), row.get("choice"), row.get("skipped")
    if not isinstance(id, str) or not id.strip():
        raise InputError(f"pair: must be the name that the line was written with, got {quoted(id)}")
    if not isinstance(skipped, str | None):
        raise InputError(f"skipped: must be a text that says why, got {quoted(skipped)}")
    skipped = (skipped or "").strip()
    if choice not in ("first", "second", None):
        raise InputError(f"choice: must be first, second or null, got {quoted(choice)}")
    if choice is None and not skipped:
        return None
    if choice is not None and skipped:
        raise InputError("choice, skipped: choose an answer, or say in skipped why there is no choice; not both")
    if id in known:
        _require_same_texts(known[id], row)
    who, left = str(row.get("annotator") or FilledIn.name).strip(), left_of(id, FilledIn.name)
    if choice is None:
        return Judgement(id, who, None, left=left, skipped=skipped)
    for name in ("first_safe", "second_safe"):
        if not isinstance(row.get(name), bool | None):
            raise InputError(f"{name}: must be true, false or null, got {quoted(row[name])}")
    other = "second" if choice == "first" else "first"
    labels = row.get(f"{choice}_safe"), row.get(f"{other}_safe")
    if labels == (False, True):
        raise InputError(
            f"{choice}_safe, {other}_safe: an unsafe answer cannot be chosen over a safe one; choose the safe one, or "
            "say in skipped why there is no choice"
        )
    chosen = left if choice == "first" else "b" if left == "a" else "a"
    return Judgement(id, who, chosen, row.get("strength"), *labels, left)


def _require_same_texts(pair: Pair, row: Mapping[str, Any]) -> None:
    """Raise InputError where a line's texts, as far as it still has them, are not those of its pair."""
    for name, text in _texts(pair).items():
        if row.get(name) is not None and _plain(row[name]) != _plain(text):
            raise InputError(
                f"{name}: is not the text that was written here, so the judgement is of something else; put it back, "
                "or leave the field out"
            )


def _plain(text: Any) -> Any:
    """Without what a tool may change on the way: white space, and how a character is put together."""
    if isinstance(text, str):
        return " ".join(unicodedata.normalize("NFC", text).split())
    if isinstance(text, list):
        return [_plain(each) for each in text]
    return {name: _plain(each) for name, each in text.items()} if isinstance(text, dict) else text


def _alike(one: Judgement, other: Judgement) -> bool:
    """They say the same, whyever a pair was skipped."""
    fields = ("choice", "strength", "chosen_safe", "rejected_safe")
    return all(getattr(one, name) == getattr(other, name) for name in fields)
