"""Intervals against tables and against simulation."""

from __future__ import annotations

import random

import pytest

from rlhf.intervals import Z95, intercept_interval, mean_interval, rate_interval, t_quantile, wilson


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (100, 1.98397)]
)
def test_t_quantile_is_the_tables(degrees: int, table: float) -> None:
    assert t_quantile(degrees) == pytest.approx(table, rel=0.005 if degrees < 10 else 1e-4)


def test_t_quantile_refuses_no_degrees() -> None:
    with pytest.raises(ValueError, match="degrees"):
        t_quantile(0)


def test_mean_interval_of_a_worked_example() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found is not None and found.ci is not None
    assert found.mean == 3.0
    assert found.ci == pytest.approx([3 - 1.96324, 3 + 1.96324], abs=2e-3)  # 2.77645 * sqrt(2.5) / sqrt(5)


def test_nothing_and_one_value() -> None:
    assert mean_interval([]) is None and rate_interval([]) is None
    single = mean_interval([0.25])
    assert single is not None and single.mean == 0.25 and single.ci is None


def test_wilson_of_a_worked_example() -> None:
    found = rate_interval([1.0] * 8 + [0.0] * 2)
    assert found is not None and found.ci is not None
    assert found.mean == 0.8
    assert found.ci == pytest.approx([0.490162, 0.943318], abs=1e-6)


@pytest.mark.parametrize(("rate", "n"), [(0.5, 10), (0.85, 100), (0.7, 5)])
def test_wilson_ends_where_the_score_test_just_rejects(rate: float, n: int) -> None:
    for bound in wilson(rate, n).ci or []:
        assert (rate - bound) ** 2 == pytest.approx(Z95**2 * bound * (1 - bound) / n)


def test_wilson_of_no_and_of_every_success() -> None:
    assert wilson(0.0, 10).ci == pytest.approx([0.0, Z95**2 / (10 + Z95**2)])
    assert wilson(1.0, 10).ci == pytest.approx([10 / (10 + Z95**2), 1.0])


def test_wilson_stays_in_0_to_1_and_is_not_empty_at_its_ends() -> None:
    for value in (0.0, 1.0):
        found = rate_interval([value] * 20)
        assert found is not None and found.low is not None and found.high is not None
        assert 0 <= found.low <= found.mean <= found.high <= 1 and found.high - found.low > 0.1


def test_rate_refuses_what_is_no_rate() -> None:
    with pytest.raises(ValueError, match="rate_interval"):
        rate_interval([0.5, 1.5])


def test_an_intercept_by_hand() -> None:
    x, noise = [0.0, 2.0, -2.0, 4.0], [-0.1, -0.1, 0.1, 0.1]  # the noise is orthogonal to 1 and to x
    found = intercept_interval(x, [1 + 0.5 * a + e for a, e in zip(x, noise, strict=True)])
    assert found is not None and found.mean == pytest.approx(1.0)
    half = 4.30265 * (0.04 / 2 * (1 / 4 + 1 / 20)) ** 0.5  # 2 degrees; x has mean 1, squares about it 20
    assert found.ci == pytest.approx([1 - half, 1 + half], rel=1e-5)


def test_an_intercept_is_that_of_ordinary_least_squares() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(1)
    x = [rng.gauss(3.0, 10.0) for _ in range(40)]
    y = [0.3 - 0.02 * a + rng.gauss(0.0, 1.0) for a in x]
    found, oracle = intercept_interval(x, y), stats.linregress(x, y)
    half = stats.t.ppf(0.975, 38) * oracle.intercept_stderr
    assert found is not None and found.mean == pytest.approx(oracle.intercept)
    assert found.ci == pytest.approx([oracle.intercept - half, oracle.intercept + half], rel=1e-3)


def test_what_has_no_intercept_has_none() -> None:
    assert intercept_interval([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]) == mean_interval([1.0, 2.0, 3.0])
    assert intercept_interval([5.0, 5.0, 5.0], [1.0, 2.0, 3.0]) is None, "no answer is as long as the other's"
    two = intercept_interval([1.0, 2.0], [1.0, 2.0])
    assert two is not None and two.mean == pytest.approx(0.0) and two.ci is None
    assert intercept_interval([], []) is None
    with pytest.raises(ValueError, match="as many"):
        intercept_interval([1.0], [])


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = random.Random(0)
    means, rates, trials = 0, 0, 400
    for _ in range(trials):
        found = mean_interval([rng.expovariate(1.0) for _ in range(60)])
        assert found is not None and found.low is not None and found.high is not None
        means += found.low <= 1.0 <= found.high
        found = rate_interval([float(rng.random() < 0.1) for _ in range(60)])
        assert found is not None and found.low is not None and found.high is not None
        rates += found.low <= 0.1 <= found.high
    assert 0.90 <= means / trials <= 0.98
    assert 0.90 <= rates / trials <= 0.99
