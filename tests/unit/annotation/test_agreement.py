"""Gwet's AC1 and AC2 against a published example, an independent package, and the definition written out.

The package is irrCAC 0.4.4, which was asked once, in an environment of its own: it wants scipy 1.12.0 exactly, which
does not go with the numpy of this project.
"""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from rlhf.annotation.agreement import gwet

# the worked example of Gwet's handbook: twelve units, four raters, five categories, ratings missing; published are AC1
# 0.77544 and its interval from 0.46081 to 1
UNITS = [[1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1]]
UNITS += [[2, 2, 2, 2], [5, 5, 5], [1, 1], [3]]


@pytest.mark.parametrize(
    ("weights", "coefficient", "low"),
    [("identity", 0.775444, 0.460813), ("ordinal", 0.89894, 0.663647), ("quadratic", 0.914001, 0.685181)],
)
def test_the_handbook_s_example(weights, coefficient: float, low: float) -> None:
    found = gwet(UNITS, [1, 2, 3, 4, 5], weights)
    assert found is not None and found.items == 11 and found.high == 1.0
    assert found.coefficient == pytest.approx(coefficient, abs=5e-7)
    assert found.low == pytest.approx(low, abs=2e-5)  # of the t quantile


# seven points, twelve items of four raters, ratings missing
POINTS = [[-1, -3, -3, -3], [-1, -1, 1, 1], [-2, -3, -3], [-2, -2], [0, 0], [-3, -3, -2, -3], [0, -1, 1, -2]]
POINTS += [[1, 2, 1, -1], [1, -1, -1], [3, 3, 3, 1], [3, 1, 3], [3, 2, 3, 2]]


@pytest.mark.parametrize(
    ("weights", "coefficient", "interval"),
    [
        ("identity", 0.353293413174, (0.135550541209, 0.571036285139)),
        ("ordinal", 0.756195965418, (0.656310902734, 0.856081028102)),
        ("quadratic", 0.797665847666, (0.708829806513, 0.886501888819)),
    ],
)
def test_seven_points_as_irrcac_has_them(weights, coefficient: float, interval: tuple[float, float]) -> None:
    found = gwet(POINTS, range(-3, 4), weights)
    assert found is not None and found.items == 12
    assert found.coefficient == pytest.approx(coefficient, abs=1e-11)
    assert (found.low, found.high) == pytest.approx(interval, abs=2e-5)  # of the t quantile


@pytest.mark.parametrize("weights", ["identity", "ordinal", "quadratic"])
def test_the_definition_written_out(weights) -> None:
    """Pair by pair, on random tables in which half of the ratings are missing."""
    q = 4
    between = {(k, m): abs(k - m) + 1 for k in range(q) for m in range(q)}
    weight = {
        "identity": lambda k, m: float(k == m),
        "ordinal": lambda k, m: 1 - between[k, m] * (between[k, m] - 1) / (q * (q - 1)),
        "quadratic": lambda k, m: 1 - ((k - m) / (q - 1)) ** 2,
    }[weights]
    for seed in range(20):
        rng = random.Random(seed)
        items = [[rng.randrange(q) for _ in range(4) if rng.random() < 0.5] for _ in range(15)]
        pairs = [[weight(k, m) for k, m in permutations(item, 2)] for item in items if len(item) > 1]
        agreed = sum(sum(own) / len(own) for own in pairs) / len(pairs)
        rated = [item for item in items if item]
        shares = [sum(item.count(k) / len(item) for item in rated) / len(rated) for k in range(q)]
        every = sum(weight(k, m) for k in range(q) for m in range(q))
        chance = every / (q * (q - 1)) * sum(share * (1 - share) for share in shares)
        found = gwet(items, range(q), weights)
        assert found is not None and found.coefficient == pytest.approx((agreed - chance) / (1 - chance), abs=1e-12)


def test_by_hand() -> None:
    """Two raters, two categories, 3 of 4 items alike, shares 5/8 and 3/8: pa 3/4, pe 2 * 15/64."""
    found = gwet([["a", "a"], ["a", "a"], ["b", "b"], ["a", "b"]], ["a", "b"])
    assert found is not None
    assert (found.observed, found.by_chance) == (0.75, pytest.approx(15 / 32))
    assert found.coefficient == pytest.approx((3 / 4 - 15 / 32) / (17 / 32))


def test_agreement_on_everything_is_one_and_order_and_lone_ratings_change_little() -> None:
    found = gwet([[1, 1, 1], [7, 7, 7], [4, 4]], range(1, 8), "quadratic")
    assert found is not None and (found.coefficient, found.low, found.high) == (1.0, 1.0, 1.0)
    assert gwet([[1, 2, 3], [3, 1]], [1, 2, 3]) == gwet([[3, 2, 1], [1, 3]], [1, 2, 3])
    assert gwet([[1], [2], []], [1, 2]) is None


@pytest.mark.parametrize(("ratings", "categories"), [([[1, 9]], [1, 2]), ([[1, 1]], [1]), ([[1, 1]], [1, 1])])
def test_what_makes_no_sense_is_refused(ratings, categories) -> None:
    with pytest.raises(ValueError, match="categories"):
        gwet(ratings, categories)
