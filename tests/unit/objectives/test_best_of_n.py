"""Order statistics against every subset; the KL of best-of-n, its bound and its estimate."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from rlhf.objectives.best_of_n import (
    expected_max,
    expected_median,
    expected_of_best,
    expected_order_statistic,
    kl_bound,
    kl_estimate,
)


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


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_gold_of_the_best_is_the_average_over_all_subsets(k: int) -> None:
    rewards, gold = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = [gold[max(subset, key=lambda i: rewards[i])].item() for subset in itertools.combinations(range(6), k)]
    assert expected_of_best(gold, rewards, k).item() == pytest.approx(statistics.mean(chosen))


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


def test_kl_estimate_is_exact_with_one_likely_best_answer() -> None:
    """One answer of probability p above 10^5 equally unlikely ones: by enumeration, and as the average over subsets."""
    for p, n in [(0.3, 4), (0.05, 16), (0.9, 2)]:
        others = 10**5
        below = (1 - p) * torch.arange(others + 1, dtype=torch.float64) / others
        mass = torch.cat([(below**n).diff(), torch.tensor([1 - (1 - p) ** n], dtype=torch.float64)])
        probability = torch.cat([torch.full((others,), (1 - p) / others), torch.tensor([p])]).double()
        kl = (mass * (mass / probability).log()).sum().item()
        estimate = kl_estimate(torch.arange(float(n)), torch.tensor([0.0] * (n - 1) + [p]), n).item()
        assert estimate == pytest.approx(kl, abs=1e-3) and estimate < kl_bound(n)


def test_kl_estimate_averages_over_all_subsets() -> None:
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.5, 2.5])
    probabilities = torch.tensor([0.2, 0.0, 0.1, 1.0, 1e-300], dtype=torch.float64)
    single = [kl_estimate(torch.zeros(3), p.repeat(3), 3).item() for p in probabilities]
    best = [max(subset, key=lambda i: rewards[i]) for subset in itertools.combinations(range(5), 3)]
    assert kl_estimate(rewards, probabilities, 3).item() == pytest.approx(statistics.mean(single[i] for i in best))
    assert single[3] == 0.0 and single[4] == pytest.approx(kl_bound(3), abs=1e-12)
    rows = kl_estimate(rewards.expand(2, 5), probabilities.expand(2, 5), 3)
    assert rows.shape == (2,) and rows[0] == rows[1] == kl_estimate(rewards, probabilities, 3)


def test_kl_estimate_from_repeated_draws_nears_the_truth() -> None:
    """Answers of probability 0.4, 0.3, 0.2, 0.1, the best the likeliest; 2000 draws of 16 count how likely each is."""
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mass = torch.cat([torch.zeros(1).double(), probabilities.cumsum(0)]) ** 4
    kl = (mass.diff() * (mass.diff() / probabilities).log()).sum().item()
    drawn = torch.multinomial(probabilities.repeat(2000, 1), 16, True, generator=torch.Generator().manual_seed(0))
    shares = ((drawn.unsqueeze(-1) == drawn.unsqueeze(-2)).sum(-1) - 1) / 15
    estimate = kl_estimate(drawn.double(), shares, 4).mean().item()
    assert kl < estimate < (kl + kl_bound(4)) / 2
