"""Parts of the driver that need no process: the command, the error line, links, the check before the start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.iteration.checks import check_plan
from rlhf.iteration.driver import last_error_line, make_link, make_links
from rlhf.iteration.plan import PlannedStage
from rlhf.iteration.processes import command_of

RECIPE = """
from dataclasses import dataclass
from pathlib import Path
from rlhf.errors import InputError

@dataclass(frozen=True)
class Config:
    output: Path
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise InputError(f"rate: must be above 0, got {self.rate}")

def main(config: Config) -> None:
    raise AssertionError("a check runs no recipe")
"""


@pytest.fixture
def stage(tmp_path: Path) -> PlannedStage:
    (tmp_path / "sft.py").write_text(RECIPE)
    (tmp_path / "sft.yaml").write_text("rate: 0.5\n")
    return PlannedStage("v3/sft", "sft", tmp_path / "sft.yaml", {"output": "o"}, (), tmp_path / "o")


def test_one_process_is_plain_python_and_more_are_launched(stage: PlannedStage, tmp_path: Path) -> None:
    from dataclasses import replace

    arguments = ["--config", str(tmp_path / "sft.yaml"), "--output", "o"]
    assert command_of(stage, tmp_path) == [sys.executable, str(tmp_path / "sft.py"), *arguments]
    command = command_of(replace(stage, processes=2), tmp_path)
    assert command[1:4] == ["-m", "accelerate.commands.launch", "--multi_gpu"]
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[-5:] == [str(tmp_path / "sft.py"), *arguments]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("10%|#  |\rTraceback\n  File x\nValueError: no\n", "ValueError: no"),
        ("error: rate: must be above 0\n", "rate: must be above 0"),
        ("[rank1]: torch.OutOfMemoryError: no room\nmore\n", "torch.OutOfMemoryError: no room"),
        ("KeyError: 'a'\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n", "KeyError: 'a'"),
        ("just words\nKilled\n", "Killed"),
        ("", ""),
    ],
)
def test_last_error_line(tmp_path: Path, text: str, line: str) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"ValueError: of the attempt before\n" + text.encode())
    assert last_error_line(log, start=34) == line


def test_links_replace_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    link = tmp_path / "pool" / "v1.parquet"
    make_link(link, tmp_path / "new")
    make_link(link, tmp_path / "new")
    assert link.read_text() == "new" and os.path.samefile(link, tmp_path / "new")


def test_a_stage_gets_the_links_of_the_plan_and_no_older_ones(stage: PlannedStage, tmp_path: Path) -> None:
    """A version that the config no longer has would else stay in the pool, and be chosen from."""
    from dataclasses import replace

    (tmp_path / "new").write_text("new")
    make_link(tmp_path / "pool" / "dropped.parquet", tmp_path / "new")
    make_links(replace(stage, links=((tmp_path / "pool" / "v1.parquet", tmp_path / "new"),)))
    assert [file.name for file in (tmp_path / "pool").iterdir()] == ["v1.parquet"]
    make_links(stage)


def test_a_plan_that_parses(stage: PlannedStage, tmp_path: Path) -> None:
    check_plan([stage], tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [("rate: 0\n", "rate: must be above 0, got 0"), ("rat: 1\n", "rat"), ("rate: fast\n", "rate"), ("rate: [\n", "")],
)
def test_a_wrong_yaml_is_told_with_its_stage_and_file(
    stage: PlannedStage, tmp_path: Path, content: str, words: str
) -> None:
    stage.config_file.write_text(content)
    with pytest.raises(InputError, match=rf"^v3/sft \(.*sft.yaml\): .*{words}"):
        check_plan([stage], tmp_path)


def test_what_is_missing_is_told(stage: PlannedStage, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match="no recipe"):
        check_plan([replace(stage, recipe="other")], tmp_path)
    with pytest.raises(InputError, match="hh does not exist; name an existing one"):
        check_plan([replace(stage, inputs=(tmp_path / "hh",))], tmp_path)
    stage.config_file.unlink()
    with pytest.raises(InputError, match=r"sft.yaml does not exist"):
        check_plan([stage], tmp_path)
