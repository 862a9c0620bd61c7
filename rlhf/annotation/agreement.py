"""Agreement between raters beyond chance: Gwet's AC1 and AC2, any number of raters an item, some of them missing.

Kilem L. Gwet, "Computing inter-rater reliability and its variance in the presence of high agreement" (2008) and
"Handbook of Inter-Rater Reliability" (4th edition, 2014, chapters 2-4); the paper reports AC1 and AC2 of its human
evaluation (section 3.4.2). Light: no torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rlhf.intervals import t_quantile

Weights = Literal["identity", "ordinal", "quadratic"]


@dataclass(frozen=True)
class Agreement:
    """How far raters agree.

    Args:
        coefficient: 1 where they agree on everything, 0 where as often as by chance.
        low, high: 95 % interval over items (t, high at most 1); None with fewer than two items.
        observed: weighted share of pairs of raters of one item who agree.
        by_chance: the same, as expected by chance.
        items: those with two raters or more.
    """

    coefficient: float
    low: float | None
    high: float | None
    observed: float
    by_chance: float
    items: int


def gwet(
    ratings: Sequence[Sequence[Hashable]], categories: Sequence[Hashable], weights: Weights = "identity"
) -> Agreement | None:
    """Gwet's AC1 (weights "identity") or AC2 ("ordinal", "quadratic").

    coefficient = (pa - pe) / (1 - pe). pa is the mean, over items with two raters or more, of the weighted share of an
    item's pairs of raters who agree; pe = T / (q (q - 1)) * sum over the q categories of pi_k (1 - pi_k), where T is
    the sum of all weights (q for the identity: AC1's 1 / (q - 1)) and pi_k the mean share of category k over items with
    a rating. The interval is of Gwet's variance for a sample of items, with t quantiles.

    Args:
        ratings: of each item, the categories that its raters named, in any order; a rater who did not rate it is
            left out.
        categories: all that could be named, in their order where the weights have one; two or more.
        weights: what a disagreement counts. "ordinal": 1 less the share of the pairs of categories between the two (and
            including them) among all pairs; "quadratic": 1 less the squared distance of their places over that of the
            ends.

    Returns:
        None where no item has two raters.

    Raises:
        ValueError: fewer than two categories, one twice, or a rating that is none of them.
    """
    places = {category: place for place, category in enumerate(categories)}
    q = len(categories)
    if q < 2 or len(places) < q:
        raise ValueError(f"categories: must be two or more, each once, got {list(categories)}")
    for item in ratings:
        for rating in item:
            if rating not in places:
                raise ValueError(f"ratings: {rating!r} is none of the categories")
    weight = _WEIGHTS[weights]
    table = [[weight(k, other, q) for other in range(q)] for k in range(q)]
    counts = [[sum(places[rating] == k for rating in item) for k in range(q)] for item in ratings if item]
    several = [sum(row) >= 2 for row in counts]
    n, n2 = len(counts), sum(several)
    if n2 == 0:
        return None
    shares = [fmean(row[k] / sum(row) for row in counts) for k in range(q)]
    factor = sum(map(sum, table)) / (q * (q - 1))
    by_chance = factor * sum(share * (1 - share) for share in shares)
    agreed = [_agreed(row, table) if enough else 0.0 for row, enough in zip(counts, several, strict=True)]
    observed = sum(agreed) / n2
    coefficient = (observed - by_chance) / (1 - by_chance)
    if n < 2:
        return Agreement(coefficient, None, None, observed, by_chance, n2)
    # each item's own part of the coefficient: its agreement, less what it does to the agreement by chance
    parts = []
    for row, own, enough in zip(counts, agreed, several, strict=True):
        part = (n / n2) * (own - by_chance) / (1 - by_chance) if enough else 0.0
        chance = factor * sum(row[k] / sum(row) * (1 - shares[k]) for k in range(q))
        parts.append(part - 2 * (1 - coefficient) * (chance - by_chance) / (1 - by_chance))
    error = math.sqrt(sum((part - coefficient) ** 2 for part in parts) / (n * (n - 1)))
    half = t_quantile(n - 1) * error
    return Agreement(coefficient, coefficient - half, min(1.0, coefficient + half), observed, by_chance, n2)


def _agreed(row: Sequence[int], table: Sequence[Sequence[float]]) -> float:
    """The weighted share of an item's ordered pairs of raters who agree."""
    raters = sum(row)
    near = [sum(w * count for w, count in zip(weights, row, strict=True)) for weights in table]
    return sum(count * (star - 1) for count, star in zip(row, near, strict=True)) / (raters * (raters - 1))


def _ordinal(k: int, other: int, q: int) -> float:
    between = abs(k - other) + 1
    return 1 - math.comb(between, 2) / math.comb(q, 2)


_WEIGHTS: dict[str, Callable[[int, int, int], float]] = {
    "identity": lambda k, other, q: float(k == other),
    "ordinal": _ordinal,
    "quadratic": lambda k, other, q: 1 - (k - other) ** 2 / (q - 1) ** 2,
}
