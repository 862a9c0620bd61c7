"""Rows that come one by one, dealt to train, validation and test, and written once what leaks between them is gone."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from rlhf.data.corpus.funnel import Histogram
from rlhf.data.corpus.leakage import Bools, EmbeddingFile, Floats, Ints, find_leaks

PARTS = ("train", "validation", "test")  # in the order in which they lose what leaks
LEAK_EXAMPLES = 6

Embed = Callable[[Sequence[str]], npt.ArrayLike]


@dataclass(frozen=True)
class Candidate:
    """What one post or passage came to: rows of one kind (the name of their file), dealt to a part by its question."""

    part: str
    kind: str
    question: str
    rows: Sequence[Mapping[str, Any]]


class Dealer:
    """Takes candidates, and in the end writes `<kind>_<part>.jsonl` without those that leak.

    The candidates wait in a file, their questions' embeddings in another; memory holds a byte a candidate, and in the
    end the embeddings of validation and test.

    Args:
        folder: to write into.
        embed: gives the (n, d) embeddings of n questions; None: leakage is not looked for.
        max_similarity: the cosine of two questions from which on they may not stand in two parts.
        seed: of the examples of leaks.
    """

    def __init__(self, folder: Path, embed: Embed | None, max_similarity: float, seed: int) -> None:
        self.folder = folder
        self.max_similarity = max_similarity
        self._embed = embed
        self._random = random.Random(seed)
        self._waiting = folder / "candidates.partial"
        self._embeddings = EmbeddingFile(folder / "embeddings.partial") if embed is not None else None
        self._parts = array("b")

    def add(self, batches: Iterable[Sequence[Candidate]]) -> None:
        """Take them all, one batch of embeddings at a time."""
        with self._waiting.open("a", encoding="utf-8") as stream:
            for batch in batches:
                stream.writelines(json.dumps(vars(candidate), ensure_ascii=False) + "\n" for candidate in batch)
                self._parts.extend(PARTS.index(candidate.part) for candidate in batch)
                if self._embeddings is not None and self._embed is not None:
                    self._embeddings.append(self._embed([candidate.question for candidate in batch]))

    def finish(self) -> tuple[dict[str, dict[str, int]], dict[str, Any] | None]:
        """Write the files; the counts of their rows by kind and part, and the figures of leakage (None: no embeddings).

        The figures: threshold; of each part the candidates, how many leak, and the distribution of the highest cosine
        with a later part; and examples.
        """
        parts = np.frombuffer(self._parts, dtype=np.int8).astype(np.int64)
        if self._embeddings is None:
            rows, _ = self._write(np.zeros(len(parts), dtype=bool), set())
            return rows, None
        drop, cosine, partner = find_leaks(self._embeddings, parts, self.max_similarity)
        self._embeddings.close()
        leaking = np.flatnonzero(drop).tolist()
        shown = self._random.sample(leaking, min(LEAK_EXAMPLES, len(leaking)))
        rows, questions = self._write(drop, {*shown, *partner[shown].tolist()})
        examples = [
            {
                "part": PARTS[parts[i]],
                "question": questions[i],
                "cosine": round(float(cosine[i]), 4),
                "other_part": PARTS[parts[partner[i]]],
                "other_question": questions[int(partner[i])],
            }
            for i in sorted(shown, key=lambda i: -cosine[i])
        ]
        return rows, {"threshold": self.max_similarity, "parts": _by_part(parts, drop, cosine), "examples": examples}

    def _write(self, drop: Bools, wanted: set[int]) -> tuple[dict[str, dict[str, int]], dict[int, str]]:
        """Deal what stays; the counts, and the questions with the `wanted` numbers."""
        counts: dict[str, dict[str, int]] = {}
        questions: dict[int, str] = {}
        streams: dict[str, TextIO] = {}
        with ExitStack() as files, self._waiting.open(encoding="utf-8") as lines:
            for number, (line, dropped) in enumerate(zip(lines, drop, strict=True)):
                if dropped and number not in wanted:
                    continue
                candidate = Candidate(**json.loads(line))
                if number in wanted:
                    questions[number] = candidate.question
                if dropped:
                    continue
                name = f"{candidate.kind}_{candidate.part}.jsonl"
                if name not in streams:
                    streams[name] = files.enter_context((self.folder / name).open("w", encoding="utf-8"))
                streams[name].writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in candidate.rows)
                of_kind = counts.setdefault(candidate.kind, dict.fromkeys(PARTS, 0))
                of_kind[candidate.part] += len(candidate.rows)
        self._waiting.unlink()
        return counts, questions


def _by_part(parts: Ints, drop: Bools, cosine: Floats) -> dict[str, Any]:
    figures = {}
    for number, name in enumerate(PARTS):
        mine = parts == number
        histogram = Histogram(0.0, 1.0, 50)
        for value in cosine[mine & (cosine > -1)]:
            histogram.add(float(value))
        figures[name] = {"in": int(mine.sum()), "out": int((mine & ~drop).sum()), "nearest": histogram.figures()}
    return figures
