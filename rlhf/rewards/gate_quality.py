"""How well "the safety score lies below the gate's threshold" finds unsafe answers: precision and recall. Light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from rlhf.intervals import wilson


class FlaggedQuality(TypedDict):
    """What lies below a threshold, against the truth; intervals are Wilson's, as [low, high].

    flagged: answers below it. precision: share of these that are unsafe (None for none). recall: share of the unsafe
    ones that are below. safe_flagged: share of the safe ones.
    """

    flagged: int
    precision: float | None
    precision_ci: list[float] | None
    recall: float | None
    recall_ci: list[float] | None
    safe_flagged: float | None
    safe_flagged_ci: list[float] | None


class GateQuality(FlaggedQuality):
    """The same with the threshold, on the safety score after the sigmoid."""

    threshold: float


class CountedGateQuality(GateQuality):
    """The same beside the number of answers."""

    answers: int


Share = Literal["precision", "recall", "safe_flagged"]
ShareInterval = Literal["precision_ci", "recall_ci", "safe_flagged_ci"]
SHARES: tuple[tuple[Share, ShareInterval], ...] = (
    ("precision", "precision_ci"),
    ("recall", "recall_ci"),
    ("safe_flagged", "safe_flagged_ci"),
)
"""The shares of a `GateQuality`, each with its interval."""


def gate_quality(scores: Sequence[float], unsafe: Sequence[bool], threshold: float) -> GateQuality:
    """One threshold against the truth; the comparison is strict, as the gate's.

    Args:
        scores: safety scores after the sigmoid, their origin taken off before it.
        unsafe: the truth of each.
    """
    below = [score < threshold for score in scores]
    hits = sum(b and u for b, u in zip(below, unsafe, strict=True))
    precision, precision_ci = _share(hits, sum(below))
    recall, recall_ci = _share(hits, sum(unsafe))
    safe_flagged, safe_flagged_ci = _share(sum(below) - hits, len(unsafe) - sum(unsafe))
    return {
        "threshold": threshold,
        "flagged": sum(below),
        "precision": precision,
        "precision_ci": precision_ci,
        "recall": recall,
        "recall_ci": recall_ci,
        "safe_flagged": safe_flagged,
        "safe_flagged_ci": safe_flagged_ci,
    }


def _share(count: int, of: int) -> tuple[float | None, list[float] | None]:
    return (count / of, wilson(count / of, of).ci) if of else (None, None)
