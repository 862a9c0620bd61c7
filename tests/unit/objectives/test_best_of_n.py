"""Order statistics against every subset, and the bound on the KL."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from rlhf.objectives.best_of_n import expected_max, expected_median, expected_order_statistic, kl_bound


@pytest.mark.parametrize("k", range(1, 8))
def test_expectations_are_averages_over_all_subsets(k: int) -> None:
    rewards = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards[3] = rewards[5]  # a tie
    subsets = list(itertools.combinations(rewards.tolist(), k))
    assert expected_max(rewards, k).item() == pytest.approx(statistics.mean(map(max, subsets)))
    assert expected_median(rewards, k).item() == pytest.approx(statistics.mean(map(statistics.median, subsets)))
    for rank in range(1, k + 1):
        by_rank = statistics.mean(sorted(subset)[rank - 1] for subset in subsets)
        assert expected_order_statistic(rewards, k, rank).item() == pytest.approx(by_rank)


def test_uniform_rewards_give_n_over_n_plus_one() -> None:
    """The K quantiles i/(K+1) are the expected order statistics of K uniform draws, so max@n is exactly n/(n+1)."""
    total = 100
    rewards = torch.arange(1, total + 1, dtype=torch.float64) / (total + 1)
    for n in (1, 2, 3, 10, 64, 100):
        assert expected_max(rewards, n).item() == pytest.approx(n / (n + 1), abs=1e-12)


def test_rows_at_once_and_ends_of_the_curve() -> None:
    rewards = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    for k in (1, 4, 16):
        rows = torch.stack([expected_max(row, k) for row in rewards])
        torch.testing.assert_close(expected_max(rewards, k), rows)
    torch.testing.assert_close(expected_max(rewards, 1), rewards.double().mean(1))
    torch.testing.assert_close(expected_max(rewards, 16), rewards.double().amax(1))
    curve = torch.stack([expected_max(rewards, k) for k in range(1, 17)])
    assert (curve.diff(dim=0) > 0).all()


def test_many_samples_do_not_overflow() -> None:
    assert expected_max(torch.linspace(0, 1, 2000), 1000).item() == pytest.approx(1.0, abs=2e-3)


def test_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="k: must lie between 1 and the 4 samples drawn, got 5"):
        expected_max(torch.zeros(4), 5)
    with pytest.raises(ValueError, match="got 0"):
        expected_max(torch.zeros(4), 0)
    with pytest.raises(ValueError, match="rank: must lie between 1 and k = 2, got 3"):
        expected_order_statistic(torch.zeros(4), 2, 3)
    with pytest.raises(ValueError, match="n: must be at least 1"):
        kl_bound(0)


@pytest.mark.parametrize(
    ("n", "bound"),
    [(1, 0.0), (2, 0.193147), (4, 0.636294), (8, 1.204442), (16, 1.835089), (64, 3.174508), (100, 3.615170)],
)
def test_kl_bound(n: int, bound: float) -> None:
    assert kl_bound(n) == pytest.approx(bound, abs=1e-6)


def test_kl_bound_is_what_best_of_n_costs_over_many_outcomes() -> None:
    """Best of n over m equally likely outcomes: KL by enumeration stays below the bound and nears it as m grows."""
    outcomes, n = 4000, 4
    ranks = torch.arange(outcomes + 1, dtype=torch.float64) / outcomes
    best = (ranks**n).diff()  # probability that the best of n is the i-th outcome
    kl = (best * (best * outcomes).log()).sum().item()
    assert kl < kl_bound(n) and kl == pytest.approx(kl_bound(n), abs=1e-3)
    assert math.isfinite(kl)
