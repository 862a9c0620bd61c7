"""The next item is made while one is used, none further ahead; what goes wrong with it is said when its turn comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from rlhf.training.feeding import ahead, on_device


def test_the_next_item_is_made_while_one_is_used_and_no_other() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    given = ahead(items())
    assert next(given) == 0 and second.wait(60)
    assert made == [0, 1]
    assert list(given) == [1, 2, 3] and list(ahead([])) == []


def test_an_error_comes_after_the_items_before_it() -> None:
    given = ahead(map([3, 4].index, [4, 3, 5]))
    assert [next(given), next(given)] == [1, 0]
    with pytest.raises(ValueError, match="5 is not in list"):
        next(given)


def test_what_is_given_up_leaves_no_thread_behind() -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]

    given = ahead(range(10))
    next(given)
    assert len(threads()) == 1
    given.close()  # type: ignore[attr-defined]
    assert not threads()


def test_a_batch_is_moved_with_all_that_it_holds() -> None:
    moved = on_device({"ids": torch.arange(3), "mask": torch.ones(2, dtype=torch.bool)}, "meta")
    assert {name: (tensor.device.type, tensor.dtype) for name, tensor in moved.items()} == {
        "ids": ("meta", torch.int64),
        "mask": ("meta", torch.bool),
    }
