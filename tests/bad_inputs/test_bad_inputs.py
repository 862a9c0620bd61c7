"""Bad input of every kind to every recipe and command: a sentence and an exit code, or work where that is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import all_cases
import pytest
from answering import answered
from case import Case

KINDS = all_cases.kinds()


def wrong(cases: Sequence[Case], world: Path, here: Path) -> list[str]:
    """What is answered otherwise than it should be."""
    return [
        f"{case.kind}, {case.name}: {ended.verdict}\n{ended.err[-1500:]}"
        for case, ended in answered(cases, world, here)
        if ended.verdict not in ("one sentence", "verdict") and not (ended.verdict == "accepted" and case.accepted)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_each_kind(kind: str, world: Path, tmp_path: Path) -> None:
    """Not each kind's first, so that recipes take turns."""
    cases = all_cases.sample(1, [kind])
    assert not wrong([cases[3 * KINDS.index(kind) % len(cases)]], world, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_each_kind(kind: str, world: Path, tmp_path: Path) -> None:
    found = wrong(all_cases.sample(1, [kind]), world, tmp_path)
    assert not found, "\n\n".join(found)


def test_every_case_has_its_own_name() -> None:
    names = [(case.kind, case.name) for case in all_cases.cases()]
    assert len(names) == len(set(names)) > 1000
