"""Every case of every kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cases_of_checkpoints
import cases_of_damage
import cases_of_own_code
import cases_of_rows
import cases_of_runs
import cases_of_servers
import cases_of_settings
from case import Case
from world import GOOD, call

FILES = (
    cases_of_settings,
    cases_of_checkpoints,
    cases_of_damage,
    cases_of_own_code,
    cases_of_rows,
    cases_of_servers,
    cases_of_runs,
)


def cases() -> Iterator[Case]:
    """In the order of the table."""
    for recipe in GOOD:
        yield Case("in order", recipe, call(recipe), accepted="nothing is wrong with it")
    for file in FILES:
        yield from file.cases()


def kinds() -> list[str]:
    """Of the cases, in their order."""
    return list(dict.fromkeys(case.kind for case in cases()))


def sample(every: int, of_kinds: Sequence[str] | None = None) -> list[Case]:
    """Every so manieth case of each kind, of these kinds."""
    found: list[Case] = []
    for kind in kinds() if of_kinds is None else of_kinds:
        found += [case for case in cases() if case.kind == kind][::every]
    return found
