"""A change of the user's own code is a change: its stage runs again, and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.imports import code_of
from rlhf.shipped import find_recipe

RECIPE = '''
from dataclasses import dataclass

from rlhf.configuration import run_recipe
from rlhf.imports import import_object
from rlhf.stage import StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class CountConfig(StageConfig):
    """Count.

    Args:
        by: package.module:attribute.
    """

    by: str = "words:count"


def main(config: CountConfig) -> None:
    with open_stage(config, one_process=True).work() as folder:
        (folder / "out.txt").write_text(str(import_object("by", config.by)("hello")))


if __name__ == "__main__":
    run_recipe(main, CountConfig)
'''
PLAN = """
run: out
configs: .
start: []
versions:
  - {name: v1, steps: [{recipe: count.py, reads: {}, makes: {}, seed: null}]}
"""


def drive(here: Path) -> str:
    command = [sys.executable, str(find_recipe("iterative_rlhf")), "--config", "plan.yaml"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_changed_function_or_recipe_of_ones_own_runs_its_stage_again(tmp_path: Path) -> None:
    """Nothing looked at it: a plan took what the old code had made for what the new code makes."""
    files = {"count.py": RECIPE, "plan.yaml": PLAN, "words.py": "def count(text):\n    return len(text)\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    made = tmp_path / "out" / "v1" / "count" / "out.txt"
    drive(tmp_path)
    assert made.read_text() == "5" and "finished earlier" in drive(tmp_path)
    (tmp_path / "words.py").write_text("def count(text):\n    return 2 * len(text)\n")
    assert "its input words.py changed" in drive(tmp_path)
    assert made.read_text() == "10"
    (tmp_path / "count.py").write_text(RECIPE.replace('("hello")', '("hello hello")'))
    assert "its input count.py changed" in drive(tmp_path)
    assert made.read_text() == "22" and "finished earlier" in drive(tmp_path)


def test_whose_code_a_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed is in the versions that a stage records; texts are no names."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own_code_package"
    folder.mkdir()
    for name in ("__init__.py", "rules.py"):
        (folder / name).touch()
    (tmp_path / "own_code_broken.py").write_text("this does not even parse")
    for name in ("own_code_package.rules:best", "rows.jsonl#own_code_package.rules:LAYOUT"):
        assert code_of(name) == Path("own_code_package/rules.py")
    assert code_of("own_code_broken:any") == Path("own_code_broken.py")
    others = ("rlhf.rewards.examples:brevity", "json:loads", "torch:zeros", "nowhere:best", "own_code_broken.part:best")
    texts = ("rows.jsonl", "Be brief: answer", "http://localhost:8000", "own_code_package.rules", "a:b:c", "")
    assert [name for name in (*others, *texts) if code_of(name) is not None] == []
