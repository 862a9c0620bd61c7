"""What the best of n samples is worth, unbiased for every n up to the K drawn, and how far it moves the policy.

Source: Llama 2 paper, section 3.2.3 (figures 7 and 8); RECIPE section 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expected_order_statistic(rewards: Tensor, k: int, rank: int) -> Tensor:
    """Expectation of the rank-th smallest of k samples, estimated without bias from K >= k drawn ones.

    It is the average over all subsets of k: the i-th smallest of all K (1-based) is the rank-th smallest of a subset
    with probability C(i-1, rank-1) C(K-i, k-rank) / C(K, k).

    Args:
        rewards: (K,) or (n, K), any order.
        k: size of the subsets, 1..K.
        rank: 1 (smallest) .. k (largest).

    Returns:
        () or (n,) float64.

    Raises:
        ValueError: k or rank out of range.
    """
    total = rewards.shape[-1]
    if not 1 <= k <= total:
        raise ValueError(f"k: must lie between 1 and the {total} samples drawn, got {k}")
    if not 1 <= rank <= k:
        raise ValueError(f"rank: must lie between 1 and k = {k}, got {rank}")
    subsets = math.comb(total, k)
    shares = [math.comb(i - 1, rank - 1) * math.comb(total - i, k - rank) / subsets for i in range(1, total + 1)]
    ordered = rewards.double().sort(dim=-1).values
    return ordered @ torch.tensor(shares, dtype=torch.float64, device=rewards.device)


def expected_max(rewards: Tensor, k: int) -> Tensor:
    """Expectation of the largest of k samples: rewards (K,) or (n, K) -> () or (n,) float64."""
    return expected_order_statistic(rewards, k, k)


def expected_median(rewards: Tensor, k: int) -> Tensor:
    """Expectation of the median of k samples (even k: mean of the middle two): (K,) or (n, K) -> () or (n,) float64."""
    lower, upper = expected_order_statistic(rewards, k, (k + 1) // 2), expected_order_statistic(rewards, k, k // 2 + 1)
    return (lower + upper) / 2


def kl_bound(n: int) -> float:
    """Upper bound in nats on KL(best of n || policy): log n - (n - 1) / n.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n: must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n
