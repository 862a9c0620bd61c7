"""Whether sigmoid(r_c - r_r) is a probability: how often a reward model is right, by how sure it is.

The ranking loss (paper, section 3.2.2, equation 1) makes sigmoid(r_a - r_b) the probability that a is chosen over b. A
pair has no first answer, so its two orders are one event: "the answer with the higher score is the chosen one", which
the model expects with confidence sigmoid(|r_c - r_r|), 0.5 or more. Light: no torch.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from rlhf.intervals import mean_interval, rate_interval

MOST_BINS = 10
PAIRS_PER_BIN = 20


class ConfidenceBin(TypedDict):
    """Pairs of like confidence: its mean, and the share that is right, with Wilson's interval."""

    pairs: int
    confidence: float
    accuracy: float
    ci: list[float] | None


class Reliability(TypedDict):
    """Calibration of sigmoid(difference).

    nll: mean -log sigmoid(difference) (the ranking loss without margin; log 2 = 0.6931 knows nothing). brier: mean (1 -
    sigmoid(difference))^2 (0.25 knows nothing). ece: mean over pairs of |accuracy - confidence| of the pair's bin.
    curve: the bins. They hold about equally many pairs: ten, or fewer where they would hold less than 20; equal
    confidences share a bin, so that the order of the rows decides nothing.
    """

    nll: float
    nll_ci: list[float] | None
    brier: float
    ece: float
    curve: list[ConfidenceBin]


def reliability(differences: NDArray[np.float64]) -> Reliability:
    """Of (n,) leads of the chosen answer, n >= 1."""
    nll = mean_interval(np.logaddexp(0.0, -differences).tolist())
    assert nll is not None
    confidence = sigmoid(np.abs(differences))
    hits = 0.5 + 0.5 * np.sign(differences)
    count = min(MOST_BINS, max(1, len(differences) // PAIRS_PER_BIN))
    edges = np.quantile(confidence, np.arange(1, count) / count)
    bins = np.searchsorted(edges, confidence)
    curve: list[ConfidenceBin] = []
    for number in np.unique(bins):
        own = bins == number
        rate = rate_interval(hits[own].tolist())
        assert rate is not None
        mean = float(confidence[own].mean())
        curve.append({"pairs": int(own.sum()), "confidence": mean, "accuracy": rate.mean, "ci": rate.ci})
    return {
        "nll": nll.mean,
        "nll_ci": nll.ci,
        "brier": float(np.mean((1 - sigmoid(differences)) ** 2)),
        "ece": sum(point["pairs"] * abs(point["accuracy"] - point["confidence"]) for point in curve) / len(hits),
        "curve": curve,
    }


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-log(1 + exp(-x))): no overflow at either end."""
    sigmoid: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -values))
    return sigmoid
