"""The best and the median of k answers for every k, and the temperature at which the best is best, from one draw of K.

Source: Llama 2 paper, section 3.2.3 (figures 7 and 8). The prompt is the unit of every interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from rlhf.intervals import mean_interval
from rlhf.objectives.best_of_n import expected_max, expected_median, kl_bound, kl_estimate

RESAMPLES = 2000


class CurvePoint(TypedDict):
    """What k answers are worth: means over prompts of the expected best and median of k, with 95 % t intervals.

    The intervals are None for one prompt. kl_bound, kl_estimate: of best-of-k from the policy, in nats.
    """

    k: int
    max: float
    max_ci: list[float] | None
    median: float
    median_ci: list[float] | None
    kl_bound: float
    kl_estimate: float


class BestTemperature(TypedDict):
    """Where the expected best of k answers is highest.

    temperature: the best, the lowest of several. ci: [low, high], between them lies the best temperature of 95 % of
    2,000 bootstrap draws of the prompts (fixed seed). best_share: temperature -> share of these draws where it is the
    best. An interval that touches an end of the sweep says that the best may lie beyond.
    """

    temperature: float
    ci: list[float]
    best_share: dict[str, float]


def reward_curve(rewards: Tensor, texts: Sequence[Sequence[str]]) -> list[CurvePoint]:
    """One point for each k = 1..K, plain JSON types.

    Args:
        rewards: (n, K) of n prompts' answers.
        texts: the answers, n of K; how often one was drawn again says how likely it is.
    """
    shares = _shares_of_other_draws(texts)
    curve: list[CurvePoint] = []
    for k in range(1, rewards.shape[1] + 1):
        best = mean_interval(expected_max(rewards, k).tolist())
        median = mean_interval(expected_median(rewards, k).tolist())
        assert best is not None and median is not None
        curve.append(
            {
                "k": k,
                "max": best.mean,
                "max_ci": best.ci,
                "median": median.mean,
                "median_ci": median.ci,
                "kl_bound": kl_bound(k),
                "kl_estimate": kl_estimate(rewards, shares, k).mean().item(),
            }
        )
    return curve


def _shares_of_other_draws(texts: Sequence[Sequence[str]]) -> Tensor:
    """(n, K) float64: the share of an answer among the K-1 other draws, an unbiased estimate of its probability."""
    shares = []
    for answers in texts:
        counts = Counter(answers)
        shares.append([(counts[answer] - 1) / max(1, len(answers) - 1) for answer in answers])
    return torch.tensor(shares, dtype=torch.float64)


def best_temperature(maxima: Mapping[float, Sequence[float]]) -> BestTemperature:
    """Where the expected best of k answers is highest, with its interval over prompts (decision 27).

    Args:
        maxima: temperature -> each prompt's expected best, the prompts in the same order.
    """
    temperatures = sorted(maxima)
    values = torch.tensor([maxima[t] for t in temperatures], dtype=torch.float64)  # (T, n)
    n = values.shape[1]
    draws = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    winners = torch.stack([row[draws].mean(1) for row in values]).argmax(0).sort().values
    cut = int(0.025 * RESAMPLES)
    counts = winners.bincount(minlength=len(temperatures)).tolist()
    return {
        "temperature": temperatures[int(values.mean(1).argmax())],
        "ci": [temperatures[int(winners[cut])], temperatures[int(winners[-1 - cut])]],
        "best_share": {str(t): count / RESAMPLES for t, count in zip(temperatures, counts, strict=True)},
    }
