"""What a stage says at its end, on the terminal and in `stage.json`: what it made, of what, and what looks wrong.

Whether something looks wrong is judged beside the thing itself (`rlhf.training.suspicion`, `rlhf.rejection.selection`,
`rlhf.ppo.watch`, …), by small functions that return sentences; here they are gathered.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlhf.stage.kept import ATTEMPT_FILE
from rlhf.stage.record import ClosingRecord

Value = TypeVar("Value", bound="float | int | str | None")


@dataclass
class Closing:
    """Gathered while a stage works; the same calls on every process, or on the main one alone."""

    used: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)
    table: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)

    def rows(self, used: int, left_out: Mapping[str, int] | None = None) -> None:
        """How many rows were used, and how many were not, by reason. Called again, it adds what was left out."""
        self.used = used
        self.left_out.update({why: count for why, count in (left_out or {}).items() if count})

    def figures(self, **numbers: float | int | str | None) -> None:
        """Add figures to show and to keep in stage.json: the few that say whether the stage did what it should."""
        self.numbers |= numbers

    def show(self, table: Sequence[str]) -> None:
        """Lines for the terminal alone, below the figures."""
        self.table += table

    def suspect(self, sentences: Iterable[str]) -> None:
        """What looks wrong, a sentence each; said once."""
        self.suspicious += [sentence for sentence in sentences if sentence not in self.suspicious]

    def record(self, folder: Path) -> ClosingRecord:
        """What `stage.json` has of it."""
        made = sorted(
            f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir() if path.name != ATTEMPT_FILE
        )
        return {
            "made": made,
            "rows_used": self.used,
            "left_out": dict(self.left_out),
            "figures": {name: _finite(value) for name, value in self.numbers.items()},
            "suspicious": self.suspicious,
        }


SUSPICIOUS = "  suspicious: "


def closing_lines(
    output: Path, record: ClosingRecord, seconds: float, table: Sequence[str] = (), *, brief: bool = False
) -> list[str]:
    """The block on the terminal, of what `Closing.record` gave, and the lines of `Closing.show`.

    brief: its first line, and what looks wrong.
    """
    lines = [f"{output}: finished in {_clock(seconds)}"]
    doubts = [f"{SUSPICIOUS}{sentence}" for sentence in record["suspicious"]]
    if brief:
        return lines + doubts
    lines.append(f"  made        {', '.join(record['made'])}")
    if record["rows_used"] is not None:
        left_out = ", ".join(f"{count} {why}" for why, count in record["left_out"].items())
        lines.append(f"  rows        {record['rows_used']} used; left out: {left_out or 'none'}")
    if record["figures"]:
        lines.append("  figures     " + ", ".join(f"{n} {_shown(v)}" for n, v in record["figures"].items()))
    lines += [f"    {line}" for line in table]
    return lines + doubts


def _finite(value: Value) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
