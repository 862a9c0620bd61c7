"""Gwet's AC1 and AC2 against values computed independently (Gwet's own irrCAC, version 0.4.4)."""

from __future__ import annotations

import pytest

from rlhf.annotation.agreement import gwet

# the worked example of Gwet's handbook: twelve units, four raters, five categories, ratings missing
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
