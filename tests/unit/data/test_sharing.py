"""A file that several lists name is parsed once, and gives each of them what parsing it for that list would give."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.data import loading
from rlhf.data.rows import Domain, Preference
from rlhf.data.sharing import SharedReading, source_identity
from rlhf.jsonl import read_rows

BOTH: tuple[Domain, ...] = ("helpfulness", "safety")
Lists = list[tuple[str, Domain, tuple[Domain, ...]]]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files in the order in which they were opened."""
    opened: list[str] = []

    def read(name: str) -> Any:
        opened.append(Path(name).name)
        return read_rows(name)

    monkeypatch.setattr(loading, "read_rows", read)
    return opened


def pair(number: int, **fields: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"q{number} ☂"}]
    return {"messages": prompt, "chosen": f"yes {number}", "rejected": f"no {number}", **fields}


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], str]:
    """The path of a file in a folder of its own for each call: another file, of the same name and content."""
    rows = {
        "both.jsonl": [pair(i, domain=("helpfulness", "safety")[i % 3 == 0], strength="better") for i in range(9)],
        "safe.jsonl": [pair(i, domain="safety", chosen_safe=True) for i in range(4)],
        "untagged.jsonl": [pair(i) for i in range(3)],
        "some_bad.jsonl": [
            pair(0, domain="safety"),
            {"chosen": "x", "domain": "safety"},
            pair(2, domain="helpfulness"),
        ],
    }

    def path(name: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        return str(folder / name)

    return path


def read(lists: Lists) -> list[tuple[list[Preference], Counter[str]]]:
    reading = SharedReading([(source, wanted) for source, _, wanted in lists], "skip")
    found = []
    for source, fallback, wanted in lists:
        skipped: Counter[str] = Counter()
        found.append((list(reading.read(source, fallback, wanted, skipped)), skipped))
    return found


@pytest.mark.parametrize(
    ("namings", "times"),
    [
        ([("both.jsonl", "safety", ("safety",)), ("both.jsonl", "helpfulness", ("helpfulness",))], 1),
        ([("both.jsonl", "safety", ("safety",)), ("both.jsonl", "safety", ("safety",))], 1),
        ([("both.jsonl", "helpfulness", ("safety",)), ("both.jsonl", "helpfulness", BOTH)] * 2, 1),
        ([("safe.jsonl", "safety", ("safety",)), ("safe.jsonl", "helpfulness", ("helpfulness",))], 1),
        ([("untagged.jsonl", "safety", ("safety",)), ("untagged.jsonl", "safety", BOTH)], 1),
        ([("untagged.jsonl", "safety", ("safety",)), ("untagged.jsonl", "helpfulness", ("helpfulness",))], 2),
        ([("some_bad.jsonl", "safety", ("safety",)), ("some_bad.jsonl", "helpfulness", ("helpfulness",))], 1),
    ],
)
def test_each_list_gets_the_rows_and_counts_of_its_own_parsing(
    namings: Lists, times: int, files: Callable[[str], str], parsed: list[str]
) -> None:
    wanted = read([(files(name), *rest) for name, *rest in namings])  # type: ignore[misc]
    assert len(parsed) == len(namings)
    parsed.clear()
    once = files(namings[0][0])
    assert read([(once, *rest) for _, *rest in namings]) == wanted  # type: ignore[misc]
    assert len(parsed) == times
    assert all(not rows or rows[0].chosen.startswith("yes") for rows, _ in wanted) and wanted[0][0]


def test_a_name_s_tag_says_the_domain_of_every_list(files: Callable[[str], str], parsed: list[str]) -> None:
    tagged = files("untagged.jsonl") + "#safety"
    own, other = read([(tagged, "safety", ("safety",)), (tagged, "helpfulness", ("helpfulness",))])
    assert len(own[0]) == 3 and not other[0] and other[1] == {"of domain safety": 3} and len(parsed) == 1


def test_one_file_by_other_names_and_another_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    (tmp_path / "there").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "./a.jsonl", "there/a.jsonl"):
        assert source_identity(name) == source_identity(file)
    shutil.copy2(file, tmp_path / "b.jsonl")
    before = source_identity(file)
    assert source_identity("b.jsonl") != before != source_identity("a.jsonl#safety")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert source_identity(file) != before, "it was written anew"
    assert source_identity("org/name:train") == source_identity("org/name:train") != source_identity("org/name")


def test_a_file_that_changes_between_two_lists_is_parsed_again(files: Callable[[str], str], parsed: list[str]) -> None:
    file = files("both.jsonl")
    reading = SharedReading([(file, ("safety",)), (file, ("helpfulness",))], "refuse")
    assert len(list(reading.read(file, "safety", ("safety",), Counter()))) == 3
    Path(file).write_text(json.dumps(pair(77, domain="helpfulness")) + "\n")
    (row,) = reading.read(file, "helpfulness", ("helpfulness",), Counter())
    assert row.chosen == "yes 77" and len(parsed) == 2
