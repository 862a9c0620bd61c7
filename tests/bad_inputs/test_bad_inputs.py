"""Bad input of every kind to every recipe and command: a sentence and an exit code, or work where that is right."""

from __future__ import annotations

from pathlib import Path

import all_cases
import pytest
from answering import answered

MANY = [pytest.param(40, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)]
"""Every so manieth case."""


@pytest.mark.parametrize("every", MANY)
def test_each_is_answered(every: int, world: Path, tmp_path: Path) -> None:
    cases = all_cases.sample(every)
    wrong = [
        f"{case.kind}, {case.name}: {ended.verdict}\n{ended.err[-1500:]}"
        for case, ended in answered(cases, world, tmp_path)
        if ended.verdict not in ("one sentence", "verdict") and not (ended.verdict == "accepted" and case.accepted)
    ]
    assert not wrong, "\n\n".join(wrong)


def test_every_case_has_its_own_name() -> None:
    names = [(case.kind, case.name) for case in all_cases.cases()]
    assert len(names) == len(set(names)) > 1000
