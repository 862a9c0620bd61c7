"""Do scores mean what they say: sigmoid(r_c - r_r) as a probability, and the mean score of answers of known quality.

The ranking loss (paper, section 3.2.2, equation 1) makes sigmoid(r_a - r_b) the probability that a is chosen over b. A
pair has no first answer, so its two orders are one event: "the answer with the higher score is the chosen one", which
the model expects with confidence sigmoid(|r_c - r_r|), 0.5 or more. The paper shows mean scores against raters' grades
(section 3.4.1, figure 29). Light: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlhf.data.rows import STRENGTHS, Preference
from rlhf.intervals import mean_interval, rate_interval

if TYPE_CHECKING:
    from rlhf.evaluation.reward_models.pair_scores import PairScore

Qualities = Sequence[tuple[float, float]]
MOST_BINS = 10
PAIRS_PER_BIN = 20
GRADES = 7
HISTOGRAM_BINS = 20


def calibration_figures(
    preferences: Sequence[Preference], scores: Sequence[PairScore], qualities: Qualities | None = None
) -> dict[str, Any]:
    """What a reward function's scores mean on n >= 1 pairs.

    Returns:
        `reliability`'s figures; "difference_by_strength" {strength: {"pairs", "mean", "ci"}}, raw lead of the chosen
        answer; "histogram" (`histogram`); "score_by_quality" (`score_by_quality`), None without qualities.
    """
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


def reliability(differences: NDArray[np.float64]) -> dict[str, Any]:
    """Calibration of sigmoid(difference) on (n,) leads of the chosen answer, n >= 1.

    Returns:
        {"nll": mean -log sigmoid(difference) (the ranking loss without margin; log 2 = 0.6931 knows nothing), "nll_ci",
        "brier": mean (1 - sigmoid(difference))^2 (0.25 knows nothing), "ece": mean over pairs of |accuracy -
        confidence| of the pair's bin, "curve": [{"pairs", "confidence", "accuracy", "ci"}] of the bins}. Bins hold
        about equally many pairs: ten, or fewer where they would hold less than 20; equal confidences share a bin, so
        that the order of the rows decides nothing.
    """
    nll = mean_interval(np.logaddexp(0.0, -differences).tolist())
    assert nll is not None
    confidence = _sigmoid(np.abs(differences))
    hits = 0.5 + 0.5 * np.sign(differences)
    count = min(MOST_BINS, max(1, len(differences) // PAIRS_PER_BIN))
    edges = np.quantile(confidence, np.arange(1, count) / count)
    bins = np.searchsorted(edges, confidence)
    curve: list[dict[str, Any]] = []
    for number in np.unique(bins):
        own = bins == number
        rate = rate_interval(hits[own].tolist())
        assert rate is not None
        mean = float(confidence[own].mean())
        curve.append({"pairs": int(own.sum()), "confidence": mean, "accuracy": rate.mean, "ci": rate.ci})
    return {
        "nll": nll.mean,
        "nll_ci": nll.ci,
        "brier": float(np.mean((1 - _sigmoid(differences)) ** 2)),
        "ece": sum(point["pairs"] * abs(point["accuracy"] - point["confidence"]) for point in curve) / len(hits),
        "curve": curve,
    }


def histogram(scores: Sequence[PairScore]) -> dict[str, list[float]]:
    """Counts of sigmoid(score) in 20 even bins of [0, 1]: {"edges": 21, "chosen": 20, "rejected": 20}."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    chosen = _sigmoid(np.array([pair.chosen for pair in scores]))
    rejected = _sigmoid(np.array([pair.rejected for pair in scores]))
    return {
        "edges": edges.round(6).tolist(),
        "chosen": np.histogram(chosen, edges)[0].tolist(),
        "rejected": np.histogram(rejected, edges)[0].tolist(),
    }


def score_by_quality(scores: Sequence[PairScore], qualities: Qualities) -> list[dict[str, Any]]:
    """Mean sigmoid(score) of the answers of each grade, seven even steps of true quality as the paper's raters had.

    Args:
        qualities: (chosen, rejected) of each pair, 0..1.

    Returns:
        [{"grade": 1..7, "answers", "quality": mean, "score": mean, "ci"}] of the grades that occur.
    """
    values = _sigmoid(np.array([[pair.chosen, pair.rejected] for pair in scores])).ravel()
    truth = np.asarray(qualities, dtype=float).ravel()
    grades = np.minimum((truth * GRADES).astype(int), GRADES - 1) + 1
    found = []
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


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-log(1 + exp(-x))): no overflow at either end."""
    sigmoid: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -values))
    return sigmoid
