"""The safety gate's threshold, and how helpfulness and safety pull apart (Llama 2 paper, 3.2.3 and appendix A.4.1).

The gate takes the safety score where it lies below a threshold (0.15: a precision of 0.89 and a recall of 0.55 on the
paper's own data). Here an answer is unsafe where people labelled it so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from rlhf.conversation import Conversation
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.intervals import mean_interval
from rlhf.rewards.config import GateConfig
from rlhf.rewards.gate_quality import GateQuality, gate_quality

THRESHOLDS = (0.01, 0.05, 0.1, GateConfig.threshold, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class MeanScore(TypedDict):
    """A mean and its 95 % interval, None where there is none."""

    mean: float | None
    ci: list[float] | None


class Tension(TypedDict):
    """Of some answers: both scores after the sigmoid, and Pearson's correlation (None where one does not vary)."""

    answers: int
    helpfulness: MeanScore
    safety: MeanScore
    correlation: float | None


class ScoredAnswer(TypedDict):
    """One answer's scores after the sigmoid."""

    helpfulness: float
    safety: float
    unsafe: bool


class GateSweep(TypedDict):
    """The content of gate_sweep.json.

    chosen: of `sweep`. precision: that was asked for. centre: whether the origins were taken off the scores. tension:
    of "safe" and of "unsafe" answers.
    """

    sweep: list[GateQuality]
    chosen: GateQuality
    precision: float
    centre: bool
    origins: dict[str, float]
    tension: dict[str, Tension]
    points: list[ScoredAnswer]


def labelled_answers(rows: Sequence[Preference]) -> tuple[list[Conversation], list[bool]]:
    """Each labelled answer's conversation, once, and whether it is unsafe.

    Raises:
        InputError: no answer is labelled, or all alike.
    """
    found: dict[str, tuple[Conversation, bool]] = {}
    for row in rows:
        answers = ((row.conversation("chosen"), row.chosen_safe), (row.conversation("rejected"), row.rejected_safe))
        for conversation, safe in answers:
            if safe is not None:
                found.setdefault(repr(conversation), (conversation, not safe))
    unsafe = [is_unsafe for _, is_unsafe in found.values()]
    if len(set(unsafe)) != 2:
        raise InputError(
            "preferences: need answers labelled safe and answers labelled unsafe (chosen_safe, rejected_safe)"
        )
    return [conversation for conversation, _ in found.values()], unsafe


def threshold_sweep(
    scores: Sequence[float], unsafe: Sequence[bool], thresholds: Sequence[float] = THRESHOLDS
) -> list[GateQuality]:
    """`rlhf.rewards.gate_quality.gate_quality` of each threshold, in their order."""
    return [gate_quality(scores, unsafe, threshold) for threshold in thresholds]


def choose_threshold(sweep: Sequence[GateQuality], precision: float) -> GateQuality:
    """The row of a sweep that the gate is to use: the highest threshold that is as precise as asked for (decision 50).

    A higher threshold finds more unsafe answers. Where none is so precise, the most precise one that flags anything;
    the lowest where none does.
    """
    rising = sorted(sweep, key=lambda row: float(row["threshold"]))
    precise = [row for row in rising if (row["precision"] or 0.0) >= precision]
    return precise[-1] if precise else max(rising, key=lambda row: row["precision"] or 0.0)


def tension(helpfulness: Sequence[float], safety: Sequence[float], unsafe: Sequence[bool]) -> dict[str, Tension]:
    """Of "safe" and of "unsafe" answers, from scores after the sigmoid."""
    found: dict[str, Tension] = {}
    for name, wanted in (("safe", False), ("unsafe", True)):
        own = [(h, s) for h, s, u in zip(helpfulness, safety, unsafe, strict=True) if u == wanted]
        of_helpfulness, of_safety = zip(*own, strict=True)
        found[name] = {
            "answers": len(own),
            "helpfulness": _mean(of_helpfulness),
            "safety": _mean(of_safety),
            "correlation": correlation(of_helpfulness, of_safety),
        }
    return found


def _mean(scores: Sequence[float]) -> MeanScore:
    found = mean_interval(scores)
    return {"mean": None, "ci": None} if found is None else {"mean": found.mean, "ci": found.ci}


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's; None where x or y does not vary."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    deviations = (sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)) ** 0.5
    return covariance / deviations if deviations > 0 else None
