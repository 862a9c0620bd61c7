"""The split: equal first turns together, independent of order and company."""

from __future__ import annotations

import pytest

from rlhf.data.splitting import first_turn, split_by_first_turn
from rlhf.errors import InputError

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def asked(text, *more):
    return [{"role": "user", "content": text}, *({"role": r, "content": c} for r, c in more)]


def split(items, shares=SHARES, seed=0):
    return split_by_first_turn(items, shares, seed, key=lambda item: item)


def test_first_turn_ignores_case_white_space_and_system():
    system = {"role": "system", "content": "be kind"}
    assert first_turn([system, *asked("Who  is\n THIS ")]) == "who is this"


def test_every_item_once_in_order_and_about_the_shares():
    items = [asked(f"question {i}") for i in range(5000)]
    parts = split(items)
    assert sum(map(len, parts.values())) == 5000
    for name, share in SHARES.items():
        positions = [int(item[0]["content"].split()[1]) for item in parts[name]]
        assert positions == sorted(positions)
        assert abs(len(positions) / 5000 - share) < 4 * (share * (1 - share) / 5000) ** 0.5


def test_no_first_turn_in_two_parts():
    items = [asked(f"question {i % 40}", ("assistant", str(i)), ("user", "more")) for i in range(400)]
    items += [asked(f" Question  {i}") for i in range(40)]
    parts = split(items)
    turns = [{first_turn(item) for item in part} for part in parts.values()]
    assert sum(map(len, turns)) == len(set.union(*turns)) == 40


def test_a_part_does_not_depend_on_the_other_items():
    items = [asked(f"question {i}") for i in range(200)]
    whole, half = split(items), split(items[::-2])
    for name in SHARES:
        assert [i for i in whole[name][::-1] if i in half[name]] == half[name]
        assert all(item in whole[name] for item in half[name])


def test_seeds_differ_and_repeat():
    items = [asked(f"question {i}") for i in range(200)]
    assert split(items, seed=1) == split(items, seed=1) != split(items, seed=2)


def test_empty_parts_and_bad_shares():
    items = [asked(f"question {i}") for i in range(50)]
    assert split(items, {"a": 0.0, "b": 1.0, "c": 0.0}) == {"a": [], "b": items, "c": []}
    for shares in ({"a": 0.5}, {"a": 1.5, "b": -0.5}):
        with pytest.raises(InputError, match="fractions: must be 0 or above and add up to 1"):
            split(items, shares)
