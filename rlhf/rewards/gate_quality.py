"""How well "the safety score lies below the gate's threshold" finds unsafe answers: precision and recall. Light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.intervals import wilson


def gate_quality(scores: Sequence[float], unsafe: Sequence[bool], threshold: float) -> dict[str, Any]:
    """One threshold against the truth; the comparison is strict, as the gate's.

    Args:
        scores: safety scores after the sigmoid, their origin taken off before it.
        unsafe: the truth of each.

    Returns:
        {"threshold", "flagged": answers below it, "precision": share of these that are unsafe (None for none),
        "recall": share of the unsafe ones that are below, "safe_flagged": share of the safe ones that are; the last
        three with Wilson's intervals "…_ci"}.
    """
    below = [score < threshold for score in scores]
    hits = sum(b and u for b, u in zip(below, unsafe, strict=True))
    row: dict[str, Any] = {"threshold": threshold, "flagged": sum(below)}
    for name, count, of in (
        ("precision", hits, sum(below)),
        ("recall", hits, sum(unsafe)),
        ("safe_flagged", sum(below) - hits, len(unsafe) - sum(unsafe)),
    ):
        row[name] = count / of if of else None
        row[f"{name}_ci"] = wilson(count / of, of).ci if of else None
    return row
