"""What looks wrong about a training that ended well: pure rules over its result, each with its threshold. Light."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf.training.loop import TrainingResult

FEWEST_ROWS = 10
"""Fewer rows teach a model these rows and nothing else."""

MOST_SKIPPED = 0.05
"""Share of steps skipped for non-finite values: beyond it the learning rate is too high, or the data broken."""

FEWEST_STEPS = 20
"""Fewer steps than this say nothing about where a loss is going: their batches differ more than the model does."""

NOISE = 3
"""Standard errors that a loss must have risen by: what less of it is, the steps' own rows can do."""


def suspicious_training(result: TrainingResult) -> list[str]:
    """Sentences: hardly any rows, no step past the warm-up, steps skipped, a loss that rose."""
    found = []
    if result.rows < FEWEST_ROWS:
        found.append(f"it trained on {result.rows} rows; fewer than {FEWEST_ROWS} teach nothing else")
    if result.steps <= result.warmup:
        found.append(
            f"all of its {result.steps} steps are warm-up (the first {result.warmup}); give more rows or epochs, or "
            "make batch_size smaller"
        )
    if result.skipped > MOST_SKIPPED * result.steps:
        found.append(f"{result.skipped} of {result.steps} steps were not finite and skipped; lower learning_rate")
    first, last = result.ends()
    if result.steps >= FEWEST_STEPS and last - first > NOISE * _error_of_a_rise(result.losses):
        found.append(f"the loss rose from {first:.3g} to {last:.3g}; lower learning_rate")
    return found


def _error_of_a_rise(losses: Sequence[float]) -> float:
    """Standard error of the last tenth's mean less the first's.

    A step's own noise is told from its difference to the step before, in which the way that the loss goes is small.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    squares = [(after - before) ** 2 for before, after in itertools.pairwise(finite)]
    if not squares:
        return 0.0
    variance = sum(squares) / len(squares) / 2
    return math.sqrt(2 * variance / max(1, len(finite) // 10))
