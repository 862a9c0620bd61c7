"""What the best of n samples is worth, unbiased for every n up to the K drawn, and how far it moves the policy.

Source: Llama 2 paper, section 3.2.3 (figures 7 and 8); decision 28; Beirami et al. 2024 (arXiv 2401.01879).
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
    return rewards.double().sort(dim=-1).values @ _shares(total, k, rank).to(rewards.device)


def _shares(total: int, k: int, rank: int) -> Tensor:
    """(total,) float64: probability of each of the samples, smallest first, to be the rank-th smallest of k."""
    if not 1 <= k <= total:
        raise ValueError(f"k: must lie between 1 and the {total} samples drawn, got {k}")
    if not 1 <= rank <= k:
        raise ValueError(f"rank: must lie between 1 and k = {k}, got {rank}")
    subsets = math.comb(total, k)
    shares = [math.comb(i - 1, rank - 1) * math.comb(total - i, k - rank) / subsets for i in range(1, total + 1)]
    return torch.tensor(shares, dtype=torch.float64)


def expected_max(rewards: Tensor, k: int) -> Tensor:
    """Expectation of the largest of k samples: rewards (K,) or (n, K) -> () or (n,) float64."""
    return expected_order_statistic(rewards, k, k)


def expected_of_best(values: Tensor, rewards: Tensor, k: int) -> Tensor:
    """Expectation of another `value` of the answer whose reward is the largest of k samples: (K,) or (n, K) float64.

    Gold beside proxy: rewards choose, values judge. Answers of equal reward should be the same answer.
    """
    worst_first = rewards.argsort(dim=-1)
    return values.double().gather(-1, worst_first) @ _shares(rewards.shape[-1], k, k).to(rewards.device)


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


def kl_estimate(rewards: Tensor, probabilities: Tensor, n: int) -> Tensor:
    """Estimate in nats of KL(best of n || policy), at most `kl_bound(n)` (Beirami et al. 2024, section 4).

    With p the probability of the best answer and every other answer's tiny, the KL is

        q (log n + (n-1) log(1-p) - (n-1)/n) + (1-q) log((1-q) / p)   where q = (1-p)^n,

    which falls from the bound at p = 0 to 0 at p = 1. Its expectation over which answer is the best of n is taken
    without bias from the K drawn ones. It counts the probability of the best answer alone, so it is a little high
    where other answers are likely too.

    Args:
        rewards: (K,) or (m, K), any order; answers of equal reward should be the same answer.
        probabilities: of each answer under the policy, in [0, 1], same shape; the share of an answer among the K-1
            other draws will do where it is not known.
        n: 1..K.

    Returns:
        () or (m,) float64.
    """
    p = probabilities.double().clamp(0, 1)
    log_q = n * torch.log1p(-p)
    missed = torch.where(p < 1, log_q.exp() * (kl_bound(n) + (n - 1) * torch.log1p(-p)), 0.0)
    share = -torch.expm1(log_q)  # 1 - q, exact for the smallest p
    hit = torch.where(p > 0, share * torch.log(share / p), 0.0)
    worst_first = rewards.argsort(dim=-1)
    return (missed + hit).gather(-1, worst_first) @ _shares(rewards.shape[-1], n, n).to(rewards.device)
