"""The best and the median of k answers for every k, and the temperature at which the best is best, from one draw of K.

Source: Llama 2 paper, section 3.2.3 (figures 7 and 8). The prompt is the unit of every interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.intervals import mean_interval
from rlhf.objectives.best_of_n import expected_max, expected_median, kl_bound, kl_estimate

RESAMPLES = 2000


def reward_curve(rewards: Tensor, texts: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """One point for each k = 1..K, plain JSON types.

    Args:
        rewards: (n, K) of n prompts' answers.
        texts: the answers, n of K; how often one was drawn again says how likely it is.

    Returns:
        {"k", "max", "max_ci", "median", "median_ci"}: means over prompts of the expected best and median of k answers,
        unbiased, with 95 % t intervals (None for one prompt); "kl_bound", "kl_estimate": of best-of-k from the policy,
        in nats.
    """
    shares = _shares_of_other_draws(texts)
    curve = []
    for k in range(1, rewards.shape[1] + 1):
        point: dict[str, Any] = {"k": k}
        for name, values in (("max", expected_max(rewards, k)), ("median", expected_median(rewards, k))):
            interval = mean_interval(values.tolist())
            assert interval is not None
            point |= {name: interval.mean, f"{name}_ci": interval.ci}
        estimate = kl_estimate(rewards, shares, k).mean().item()
        curve.append(point | {"kl_bound": kl_bound(k), "kl_estimate": estimate})
    return curve


def _shares_of_other_draws(texts: Sequence[Sequence[str]]) -> Tensor:
    """(n, K) float64: the share of an answer among the K-1 other draws, an unbiased estimate of its probability."""
    shares = []
    for answers in texts:
        counts = Counter(answers)
        shares.append([(counts[answer] - 1) / max(1, len(answers) - 1) for answer in answers])
    return torch.tensor(shares, dtype=torch.float64)


def best_temperature(maxima: Mapping[float, Sequence[float]]) -> dict[str, Any]:
    """Where the expected best of k answers is highest, with its interval over prompts (decision 27).

    Args:
        maxima: temperature -> each prompt's expected best, the prompts in the same order.

    Returns:
        {"temperature": the best, the lowest of several; "ci": [low, high], between them lies the best temperature of
        95 % of 2,000 bootstrap draws of the prompts (fixed seed); "best_share": temperature -> share of these draws
        where it is the best}. An interval that touches an end of the sweep says that the best may lie beyond.
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
