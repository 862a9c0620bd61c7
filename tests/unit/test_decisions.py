"""What the code cites is there: every "decision N" has its row on docs/decisions.md, and no document from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "decisions.md"
CITED = re.compile(r"\b[Dd]ecisions? (\d+)((?:(?:, | to | and )\d+)*)")
ROWS = re.compile(r'^\| <a id="decision-(\d+)"></a>(\d+) \| [^|]+ \| [^|]+ \| [^|]+ \|$', re.MULTILINE)
OUTSIDE = re.compile(r"\b(?:RECIPE|STACK|DESIGN|PLAN)(?:\.md\b|,? section\b| \d)|(?<!trl )\bissue \d+\b")
"""Notes that are not in the repository, and numbers of issues that nobody outside can look up."""


def texts() -> list[Path]:
    """Code, settings and pages."""
    folders = [ROOT / name for name in ("rlhf", "recipes", "docs", "tests", "benchmarks", "examples", "ds_configs")]
    found = [
        file for folder in folders for ending in ("py", "md", "yaml", "j2") for file in folder.rglob(f"*.{ending}")
    ]
    return [*found, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def cited(text: str) -> set[int]:
    """The numbers of "decision 3", "decisions 3 and 5" and "decisions 3, 5 to 7"."""
    numbers: set[int] = set()
    for first, more in CITED.findall(text):
        last = int(first)
        numbers.add(last)
        for joint, number in re.findall(r"(, | to | and )(\d+)", more):
            numbers |= set(range(last, int(number) + 1)) if joint == " to " else {int(number)}
            last = int(number)
    return numbers


def test_every_decision_has_one_row() -> None:
    rows = ROWS.findall(PAGE.read_text(encoding="utf-8"))
    numbers = [int(shown) for _, shown in rows]
    assert all(anchor == shown for anchor, shown in rows)
    assert len(rows) == PAGE.read_text(encoding="utf-8").count("<a id="), "a row of another form"
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), "each number once, none left out"


def test_every_decision_that_is_cited_is_on_the_page() -> None:
    known = {int(number) for _, number in ROWS.findall(PAGE.read_text(encoding="utf-8"))}
    found = {file: cited(file.read_text(encoding="utf-8")) - known for file in texts() if file != Path(__file__)}
    assert not {str(file.relative_to(ROOT)): numbers for file, numbers in found.items() if numbers}


def test_the_code_cites_decisions() -> None:
    code = [file for file in texts() if file.is_relative_to(ROOT / "rlhf")]
    assert len(set().union(*(cited(file.read_text(encoding="utf-8")) for file in code))) > 30


def test_no_document_is_cited_that_is_not_here() -> None:
    mine = Path(__file__)
    found = {file: OUTSIDE.findall(file.read_text(encoding="utf-8")) for file in texts() if file != mine}
    assert not {str(file.relative_to(ROOT)): hits for file, hits in found.items() if hits}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("see decision 7.", {7}),
        ("(decisions 7 and 33)", {7, 33}),
        ("decisions 34 to 36, and `x`", {34, 35, 36}),
        ("Decisions 30, 36, 41", {30, 36, 41}),
        ("decision of 2024", set()),
    ],
)
def test_how_a_citation_is_read(text: str, numbers: set[int]) -> None:
    assert cited(text) == numbers


def test_what_an_outside_document_looks_like() -> None:
    for text in ("RECIPE 5", "(RECIPE, section 1)", "STACK.md", "RECIPE section 3", "issue 12"):
        assert OUTSIDE.search(text), text
    for text in ("RECIPE = 1", "STACK_EXCHANGE", "trl issue 1900", "make_plan", "PLAN"):
        assert not OUTSIDE.search(text), text
