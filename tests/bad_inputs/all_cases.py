"""Every case of every kind."""

from __future__ import annotations

from collections.abc import Iterator

import cases_of_checkpoints
import cases_of_own_code
import cases_of_rows
import cases_of_runs
import cases_of_settings
from case import Case
from world import GOOD, call

FILES = (cases_of_settings, cases_of_checkpoints, cases_of_own_code, cases_of_rows, cases_of_runs)


def cases() -> Iterator[Case]:
    """In the order of the table."""
    for recipe in GOOD:
        yield Case("in order", recipe, call(recipe), accepted="nothing is wrong with it")
    for file in FILES:
        yield from file.cases()
