"""Splits by the first user's message: what is held out was never read, in any dialogue that begins the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rlhf.conversation import Conversation
from rlhf.errors import InputError

Item = TypeVar("Item")
Part = TypeVar("Part", bound=str)


def first_turn(messages: Conversation) -> str:
    """The first user's message, lower case, runs of white space made one space: the key of a split."""
    return next(" ".join(m["content"].split()).lower() for m in messages if m["role"] == "user")


def split_by_first_turn(
    items: Sequence[Item], fractions: Mapping[Part, float], seed: int, key: Callable[[Item], Conversation]
) -> dict[Part, list[Item]]:
    """Deal items into the named parts; equal first turns land in the same part.

    A part is drawn by a hash of (seed, first turn), so it depends neither on the other items nor on their order, files
    split apart agree, and the shares hold in expectation.

    Args:
        items: in the order that each part keeps.
        fractions: part -> share; they add up to 1 (InputError).
        seed: another one gives another split.
        key: the messages of an item.
    """
    if any(share < 0 for share in fractions.values()) or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-9):
        raise InputError(f"fractions: must be 0 or above and add up to 1, got {dict(fractions)}")
    parts: dict[Part, list[Item]] = {name: [] for name in fractions}
    for item in items:
        parts[part_of(first_turn(key(item)), fractions, seed)].append(item)
    return parts


def part_of(text: str, fractions: Mapping[Part, float], seed: int) -> Part:
    """The part that `split_by_first_turn` deals an item to whose first turn is `text`: for items that come one by one.

    The fractions must add up to 1.
    """
    return _part(_uniform(seed, text), fractions)


def _part(draw: float, fractions: Mapping[Part, float]) -> Part:
    name, edge = next(iter(fractions)), 0.0
    for candidate, share in fractions.items():
        edge += share
        if share > 0:
            name = candidate
            if draw < edge:
                break
    return name


def _uniform(seed: int, text: str) -> float:
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
