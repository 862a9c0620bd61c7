"""Steps that stand out: a loss or a gradient far above those just before, most often of a bad batch. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf.metrics import keep_before

FILE = "spikes.jsonl"
WINDOW = 50
"""Steps that a step is compared with, those just before it."""
FEWEST = 20
"""With fewer of them nothing stands out."""
FAR = 6.0
"""Standard deviations above the mean from which on a step stands out."""
LEAST_SPREAD = 0.02
"""Of the mean: a standard deviation below it counts as this much."""


@dataclass
class Spikes:
    """What a training has seen so far: the loss and the gradient norm (before clipping) of each step."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def far(self, loss: float, norm: float) -> dict[str, float]:
        """Of a next step: {"loss": z, "grad_norm": z} of those that stand out, by how many standard deviations."""
        found = {"loss": z_score(self.losses, loss), "grad_norm": z_score(self.norms, norm)}
        return {name: round(z, 2) for name, z in found.items() if z is not None and z > FAR}

    def add(self, loss: float, norm: float) -> None:
        """Count a step, whether it was taken or not."""
        self.losses.append(loss)
        self.norms.append(norm)


def z_score(before: Sequence[float], value: float) -> float | None:
    """(value - mean) / standard deviation of the last WINDOW finite ones; None: they are few, or it is not finite."""
    window = [x for x in before[-2 * WINDOW :] if math.isfinite(x)][-WINDOW:]
    if len(window) < FEWEST or not math.isfinite(value):
        return None
    mean = fmean(window)
    spread = max(stdev(window), LEAST_SPREAD * abs(mean))
    return (value - mean) / spread if spread > 0 else None


class SpikeLog:
    """`spikes.jsonl` beside a training's metrics: for each step that stood out its figures and its rows, to read."""

    def __init__(self, metrics: Path, shown: Callable[[Any], Any]) -> None:
        """metrics: the file of the metrics. shown: a row as the file has it."""
        self.path, self._shown = metrics.with_name(FILE), shown

    def go_on(self, step: int) -> None:
        """Drop what a broken-off attempt wrote of `step` and later."""
        keep_before(self.path, step)

    def write(
        self, step: int, far: dict[str, float], figures: dict[str, float], taken: bool, rows: Sequence[Any]
    ) -> None:
        """Add a step."""
        row = {"step": step, **figures, "z": far, "taken": taken, "rows": [self._shown(row) for row in rows]}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
