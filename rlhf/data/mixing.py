"""Mixes of several kinds of rows by exact counts (paper, section 3.2.2: 50/50 for helpfulness, 90/10 for safety)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from rlhf.errors import InputError, notice

Item = TypeVar("Item")


def other_count(primary: int, other_share: float) -> int:
    """How many other rows make `other_share` of the whole beside `primary` rows, rounded to the nearest (half up)."""
    if not 0 <= other_share < 1:
        raise InputError(f"other_share: must be 0 or above and below 1, got {other_share}")
    return int(primary * other_share / (1 - other_share) + 0.5)


def mix(primary: Sequence[Item], other: Sequence[Item], other_share: float, seed: int) -> list[Item]:
    """All of `primary` and so many of `other`, drawn without replacement, that they are `other_share` of the whole.

    Where `other` has too few rows all of them are taken, and stderr says so: no row is repeated, none of `primary` is
    dropped (decision 15). The result is shuffled; it depends on the rows' order and `seed` only.
    """
    count = other_count(len(primary), other_share)
    if count > len(other):
        share = len(other) / max(1, len(primary) + len(other))
        notice(f"mix: an other_share of {other_share} asks for {count} other rows, there are {len(other)}: {share:.3f}")
    generator = random.Random(seed)
    mixed = [*primary, *generator.sample(list(other), min(count, len(other)))]
    generator.shuffle(mixed)
    return mixed


def mix_several(
    primary: Sequence[Item], others: Sequence[tuple[Sequence[Item], float]], seed: int, name: str = "mix"
) -> list[Item]:
    """All of `primary`, and of each other source so many rows, drawn without replacement, as are its share of all.

    Where a source has too few rows all of them are taken, and stderr says so. Shuffled; with one source it is `mix`.

    Args:
        others: (rows, share) of each source; the shares are of the whole and add up to less than 1.

    Raises:
        InputError: the shares leave nothing for `primary`.
    """
    total = sum(share for _, share in others)
    if total >= 1:
        raise InputError(f"{name}: the shares of the mixed sources add up to {total:g}, which must be below 1")
    if len(others) == 1:
        return mix(primary, *others[0], seed)
    generator = random.Random(seed)
    mixed = list(primary)
    for rows, share in others:
        count = int(len(primary) * share / (1 - total) + 0.5)
        if count > len(rows):
            notice(f"{name}: a share of {share:g} asks for {count} rows, there are {len(rows)}")
        mixed += generator.sample(list(rows), min(count, len(rows)))
    generator.shuffle(mixed)
    return mixed
