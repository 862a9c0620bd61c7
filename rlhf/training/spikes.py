"""Steps that stand out: a loss or a gradient far above those just before, most often of a bad batch. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rlhf.errors import InputError
from rlhf.metrics import keep_before

if TYPE_CHECKING:
    from rlhf.training.step import StepFigures

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


class SpikeWatch:
    """Looks at every step of a training, writes down those that stand out, and does with them as `on_spike` says.

    `spikes.jsonl`, beside the metrics, has their figures and their rows, to read.

    A step of fewer rows than the others, the last one of an epoch, is counted and not judged: its figures scatter more.

    Args:
        name: of the training, for messages.
        on_spike: of `rlhf.training.config.OptimizerConfig`.
        seen: what the training has seen before; what it sees is added.
        metrics: the file of the metrics; None: nothing is written.
        shown: a row as the file has it.
        full: rows of a step that is judged.
        writes: whether this process does.
    """

    def __init__(
        self,
        name: str,
        on_spike: str,
        seen: Spikes,
        metrics: Path | None,
        shown: Callable[[Any], Any],
        *,
        full: int,
        writes: bool,
    ) -> None:
        self._name, self._on_spike, self._seen, self._shown = name, on_spike, seen, shown
        self._file = None if metrics is None else metrics.with_name(FILE)
        self._full = full
        self._writes = writes and self._file is not None
        if self._writes and self._file is not None:
            keep_before(self._file, len(seen.losses))  # what a broken-off attempt wrote of this step and later

    def refuse(self, rows: Sequence[Any]) -> Callable[[float, float], bool] | None:
        """By its loss and gradient norm, whether a step of these rows is not to be taken; None: it is in any case."""
        if self._on_spike == "keep" or len(rows) < self._full:
            return None
        return lambda loss, norm: bool(self._seen.far(loss, norm))

    def saw(self, step: int, figures: StepFigures, rows: Sequence[Any]) -> bool:
        """Count a step, taken or not: does it stand out? InputError where it does, and on_spike is stop."""
        loss, norm = figures.means["loss"], figures.grad_norm
        far = self._seen.far(loss, norm) if len(rows) >= self._full else {}
        if far and self._writes and self._file is not None:
            shown = [self._shown(row) for row in rows]
            row = {"step": step, "loss": loss, "grad_norm": norm, "z": far, "taken": figures.taken, "rows": shown}
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        if figures.refused and self._on_spike == "stop":
            above = " and ".join(f"{what} {z:.1f}" for what, z in far.items())
            raise InputError(
                f"{self._name}: step {step} stands out, by standard deviations above those before: {above}; its rows "
                f"are in {self._file or FILE}: mend what is wrong with them, or set on_spike to skip or keep"
            )
        self._seen.add(loss, norm)
        return bool(far)
