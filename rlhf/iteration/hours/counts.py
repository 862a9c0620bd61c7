"""How many rows a stage reads, and how long they are: from its files where they are there, else as expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.iteration.plan import PlannedStage, maker_of
from rlhf.jsonl import read_rows as rows_of

LOOKED_AT = 200
"""Rows of a file that are read for lengths and domains."""
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Rows:
    """Rows of one kind.

    Args:
        number: how many.
        characters: mean of a row's messages; of a preference's the prompt's and both answers', as they are computed.
        helpfulness: share of them whose domain is not safety.
        answers: of those characters, mean of a preference's two answers, or of a dialogue's.
        turns: mean of the user's messages.
        several: share of them with two of these and more.
    """

    number: float
    characters: float
    helpfulness: float = 1.0
    answers: float = 0.0
    turns: float = 1.0
    several: float = 0.0

    def of_domain(self, domain: str) -> float:
        """How many are of a domain."""
        return self.number * (1 - self.helpfulness if domain == "safety" else self.helpfulness)


@dataclass(frozen=True)
class _Row:
    """Characters of all that stands in a row, of its answers; and the user's messages."""

    characters: int = 0
    answers: int = 0
    turns: int = 0


def _row(line: bytes) -> _Row:
    """Of what is no row, which the stage that reads it says, nothing."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return _Row()
    if not isinstance(content, dict):
        return _Row()
    found = content.get("messages")
    messages = [m for m in found if isinstance(m, dict)] if isinstance(found, list) else []
    answers = [len(str(m.get("content"))) for m in messages if m.get("role") == "assistant"]
    compared = [len(content[name]) for name in ("chosen", "rejected") if isinstance(content.get(name), str)]
    characters = sum(len(str(m.get("content"))) for m in messages) + sum(compared)
    return _Row(characters, sum(compared or answers), sum(m.get("role") == "user" for m in messages))


def read_rows(path: Path) -> Rows:
    """Of a JSON-lines file as we write it: all lines are counted, some hundred over the whole of it read."""
    number = safe = 0
    with path.open("rb") as stream:
        for line in stream:
            number += 1
            safe += b'"domain": "safety"' in line
    every = max(1, number // LOOKED_AT)
    with path.open("rb") as stream:
        rows = [_row(line) for place, line in enumerate(stream) if place % every == 0 and line.strip()]
    if not rows:
        return Rows(0, 0.0)
    characters, answers = (sum(getattr(row, name) for row in rows) / len(rows) for name in ("characters", "answers"))
    turns = sum(max(1, row.turns) for row in rows) / len(rows)
    several = sum(row.turns > 1 for row in rows) / len(rows)
    return Rows(number, characters, 1 - safe / number, answers, turns, several)


def read_any(source: str | Path) -> Rows | None:
    """Of a local file of any form, or of a folder's: its rows, and how long all that stands in one is. None: no such.

    InputError where it cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return together([rows for file in sorted(path.iterdir()) if (rows := read_any(file)) is not None])
    if not path.is_file():
        return None
    lengths = [sum(len(str(value)) for value in row.values()) for _, row in rows_of(path)]
    return Rows(len(lengths), sum(lengths) / len(lengths)) if lengths else Rows(0, 0.0)


def together(parts: Sequence[Rows]) -> Rows:
    """Several files' rows."""
    number = sum(part.number for part in parts)
    if not number:
        return Rows(0, 0.0)
    means = (
        sum(part.number * getattr(part, name) for part in parts) / number
        for name in ("characters", "helpfulness", "answers", "turns", "several")
    )
    return Rows(number, *means)


class Counts:
    """The rows behind a stage's options.

    Args:
        stages: of the plan.
        expected: artifact -> what is expected of a file that is not made yet.
        settings: stage -> its recipe's config.
    """

    def __init__(
        self, stages: Sequence[PlannedStage], expected: Mapping[str, Rows], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.stages, self.expected, self.settings = stages, expected, settings or {}

    def rows(self, stage: PlannedStage, option: str) -> Rows | None:
        """What an option of a stage names; None: nothing is known of it."""
        text = stage.overrides.get(option)
        if text is None:
            return Rows(0, 0.0)
        paths = json.loads(text) if text.startswith("[") else [text]
        found = [self._of(Path(path)) for path in paths]
        known = [rows for rows in found if rows is not None]
        return together(known) if len(known) == len(found) else None

    def shared_by_versions(self, stage: PlannedStage, option: str) -> bool:
        """Whether what an option names has the same rows for every version (prepare_data's `rounds: all`)."""
        maker = maker_of(Path(stage.overrides.get(option, "")), self.stages)
        return maker is not None and getattr(self.settings.get(maker.name), "rounds", None) == "all"

    def _of(self, path: Path) -> Rows | None:
        if path.is_file() and path.suffix == ".jsonl":
            return read_rows(path)
        maker = maker_of(path, self.stages)
        if maker is None or path.exists():
            return None
        made = str(path.relative_to(maker.output))
        names = (name for name, place in maker.makes.items() if re.fullmatch(_pattern(place), made))
        return self.expected.get(next(names, ""))


def _pattern(place: str) -> str:
    return re.escape(place).replace(re.escape("{version}"), ".+")
