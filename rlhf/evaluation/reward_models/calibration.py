"""Do scores mean what they say: `reliability`, and the mean score of answers of known quality.

The paper shows mean scores against raters' grades (section 3.4.1, figure 29). Light: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from rlhf.data.rows import STRENGTHS, Preference
from rlhf.intervals import mean_interval
from rlhf.rewards.training.reliability import Reliability, reliability, sigmoid

if TYPE_CHECKING:
    from rlhf.evaluation.reward_models.pair_scores import PairScore

Qualities = Sequence[tuple[float, float]]
GRADES = 7
HISTOGRAM_BINS = 20


class Lead(TypedDict):
    """Mean raw lead of the chosen answer over the other, with its interval."""

    pairs: int
    mean: float
    ci: list[float] | None


class Histogram(TypedDict):
    """Counts of sigmoid(score) in 20 even bins of [0, 1], between 21 edges."""

    edges: list[float]
    chosen: list[int]
    rejected: list[int]


class GradeScore(TypedDict):
    """The answers of one grade of true quality, 1..7: its mean, and the mean of sigmoid(score) with its interval."""

    grade: int
    answers: int
    quality: float
    score: float
    ci: list[float] | None


class Calibration(Reliability):
    """What a reward function's scores mean. score_by_quality: None where no quality is known."""

    difference_by_strength: dict[str, Lead]
    histogram: Histogram
    score_by_quality: list[GradeScore] | None


def calibration_figures(
    preferences: Sequence[Preference], scores: Sequence[PairScore], qualities: Qualities | None = None
) -> Calibration:
    """What a reward function's scores mean on n >= 1 pairs."""
    leads = {
        strength: [pair.difference for row, pair in zip(preferences, scores, strict=True) if row.strength == strength]
        for strength in STRENGTHS
    }
    return {
        **reliability(np.array([pair.difference for pair in scores])),
        "difference_by_strength": {
            strength: {"pairs": len(own), "mean": found.mean, "ci": found.ci}
            for strength, own in leads.items()
            if (found := mean_interval(own)) is not None
        },
        "histogram": histogram(scores),
        "score_by_quality": None if qualities is None else score_by_quality(scores, qualities),
    }


def histogram(scores: Sequence[PairScore]) -> Histogram:
    """Of the chosen and of the rejected answers' scores."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    chosen = sigmoid(np.array([pair.chosen for pair in scores]))
    rejected = sigmoid(np.array([pair.rejected for pair in scores]))
    return {
        "edges": edges.round(6).tolist(),
        "chosen": np.histogram(chosen, edges)[0].tolist(),
        "rejected": np.histogram(rejected, edges)[0].tolist(),
    }


def score_by_quality(scores: Sequence[PairScore], qualities: Qualities) -> list[GradeScore]:
    """Mean sigmoid(score) of the answers of each grade, seven even steps of true quality as the paper's raters had.

    Args:
        qualities: (chosen, rejected) of each pair, 0..1.

    Returns:
        Of the grades that occur.
    """
    values = sigmoid(np.array([[pair.chosen, pair.rejected] for pair in scores])).ravel()
    truth = np.asarray(qualities, dtype=float).ravel()
    grades = np.minimum((truth * GRADES).astype(int), GRADES - 1) + 1
    found: list[GradeScore] = []
    for grade in np.unique(grades):
        own = grades == grade
        score = mean_interval(values[own].tolist())
        assert score is not None
        found.append(
            {
                "grade": int(grade),
                "answers": int(own.sum()),
                "quality": float(truth[own].mean()),
                "score": score.mean,
                "ci": score.ci,
            }
        )
    return found
