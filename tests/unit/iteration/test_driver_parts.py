"""Parts of the driver that need no process: the command, the error line, links, the check before the start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.errors import InputError
from rlhf.iteration.checks import check_plan
from rlhf.iteration.driver import Driver, StageFailed
from rlhf.iteration.launching import Launch
from rlhf.iteration.links import make_link, make_links
from rlhf.iteration.plan import PlannedStage
from rlhf.iteration.processes.failures import describe_failure, is_users_mistake
from rlhf.iteration.processes.log_watch import LogWatch
from rlhf.iteration.processes.stage_process import command_of
from rlhf.iteration.processes.stalls import StallWatch
from rlhf.iteration.progress import Progress

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
    command = command_of(replace(stage, launch=Launch(processes=2)), tmp_path)
    assert command[1:] == ["-m", "rlhf.launch", "--num_processes", "2", str(tmp_path / "sft.py"), *arguments]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("10%|#  |\rTraceback\n  File x\nValueError: no\n", "ValueError: no"),
        ("error: rate: must be above 0\n", "rate: must be above 0"),
        ("[rank1]: torch.OutOfMemoryError: no room\nmore\n", "torch.OutOfMemoryError: no room"),
        ("KeyError: 'a'\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n", "KeyError: 'a'"),
        ("error: too long\n[rank1]: RuntimeError: Connection closed by peer\n", "too long"),
        ("just words\nKilled\n", "Killed"),
        ("", "exit code 1"),
        ("words\n=======\n-----\n", "words"),
    ],
)
def test_the_last_line_that_names_an_error(tmp_path: Path, text: str, line: str) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"ValueError: of the attempt before\n" + text.encode())
    assert describe_failure(1, log, start=34) == line


BOX = """RuntimeError: Connection closed by peer
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
recipes/ppo.py FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-28_14:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 4711)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 4711
============================================================
"""


@pytest.mark.parametrize(
    ("status", "text", "kills", "words"),
    [
        (1, BOX, 0, "process 1 was killed by signal 9 (SIGKILL): somebody killed it, or the machine ran out of memory"),
        (1, BOX, 1, "process 1 was killed by signal 9 (SIGKILL): the machine ran out of memory; start it with less"),
        (1, BOX.replace("-9", "-11"), 0, "process 1 was killed by signal 11 (SIGSEGV): a native library crashed"),
        (1, BOX.replace("-9", "1"), 0, "RuntimeError: Connection closed by peer"),
        (137, "RuntimeError: Connection closed by peer", 0, "one of its processes was killed by signal 9 (SIGKILL)"),
        (-9, "step 3: KeyError: 'a'", 1, "killed by signal 9 (SIGKILL): the machine ran out of memory"),
        (-7, "", 0, "killed by signal 7 (SIGBUS): a file that it had mapped was cut off, or the disk or /dev/shm is"),
        (0, "", 0, "it ended without writing its folder"),
    ],
)
def test_a_killed_process_is_told_by_its_signal_and_the_likely_cause(
    tmp_path: Path, status: int, text: str, kills: int, words: str
) -> None:
    (tmp_path / "x.log").write_text(text)
    assert describe_failure(status, tmp_path / "x.log", out_of_memory_kills=kills).startswith(words)


@pytest.mark.parametrize(
    ("status", "text", "mistake"),
    [
        (2, "", True),
        (3, "suspicious", True),
        (1, BOX.replace("-9", "2"), True),
        (1, "error: rate: must be above 0\nRuntimeError: Connection closed by peer\n", True),
        (1, BOX, False),
        (1, BOX.replace("-9", "1"), False),
        (1, "srun: error: node7: task 1: Killed\n", False),
        (-9, "", False),
        (1, "ValueError: error: no\n", False),
    ],
)
def test_a_mistake_of_the_user_s_is_told_from_a_failure(tmp_path: Path, status: int, text: str, mistake: bool) -> None:
    (tmp_path / "x.log").write_text("error: of the attempt before\n" + text)
    assert is_users_mistake(status, tmp_path / "x.log", 29) is mistake


def test_a_stage_stands_still_when_nothing_new_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(0, 10_000, 10))
    monkeypatch.setattr("rlhf.iteration.processes.stalls.time.monotonic", lambda: next(clock))
    log, folder = tmp_path / "x.log", tmp_path / "x.partial"
    log.write_text("started\n")
    watch = StallWatch(log, folder, limit=30)
    assert [watch.begins() for _ in range(6)] == [False, False, True, False, False, False], "told once"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    assert [watch.begins() for _ in range(5)] == [False, False, False, True, False], "it went on, and stands again"
    assert not any(StallWatch(log, folder, limit=0).begins() for _ in range(20))


def test_what_a_stage_says_of_how_far_it_is(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("$ command\n")
    watch = LogWatch(log, log.stat().st_size)
    with log.open("a") as stream:
        stream.write("sampling: 30/600 answers in 01:00, 19:00 to go\nan answer: in 5 to go\ntrain: 1/2 st")
    assert not watch.begins_to_wait() and watch.newest == "sampling: 30/600 answers in 01:00, 19:00 to go"
    with log.open("a") as stream:
        stream.write("eps in 00:02, ? to go, loss=0.5\n")
    assert not watch.begins_to_wait() and watch.newest == "train: 1/2 steps in 00:02, ? to go, loss=0.5"
    log.write_text(log.read_text() + "waits for people: 0 of 2\n")
    assert [watch.begins_to_wait() for _ in range(2)] == [True, False] and watch.newest == "waits for people: 0 of 2"


TELLS = """
import sys, time
from rlhf.stage import open_stage

print("sampling: 30/600 answers in 01:00, 19:00 to go", file=sys.stderr, flush=True)
time.sleep(1.5)
"""


def test_a_driver_s_log_says_how_far_a_long_stage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, it was silent from a stage's start to its end."""
    for name in ("FIRST_WORD", "LONGEST_SILENCE"):
        monkeypatch.setattr(f"rlhf.iteration.progress.{name}", 0.3)
    (tmp_path / "tells.py").write_text(TELLS)
    one = PlannedStage("v1/tells", str(tmp_path / "tells.py"), None, {}, (), tmp_path / "run" / "v1" / "tells")
    with pytest.raises(StageFailed):
        Driver([one], tmp_path / "run", warm=False, gpus=[], left=lambda records: 4000.0).execute()
    said = capsys.readouterr().out
    lines = [line.split(maxsplit=3)[3] for line in said.splitlines() if "v1/tells" in line]
    assert lines[0] == "started" and lines[-1].startswith("FAILED") and "\r" not in said
    assert "sampling: 30/600 answers in 01:00, 19:00 to go, about 1 h 07 min of the run to go" in lines


def test_the_longer_a_stage_runs_the_rarer_it_is_spoken_of() -> None:
    said, progress = [], Progress(1)
    for second in range(0, 5 * 3600, 10):
        if progress.is_due(SimpleNamespace(pid=1, seconds=float(second))):  # type: ignore[arg-type]
            said.append(second / 60)
    assert said == [2, 4, 8, 16, 32, 64, 124, 184, 244]
    assert not Progress(1, quiet=True).is_due(SimpleNamespace(pid=1, seconds=1e6))  # type: ignore[arg-type]


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


def test_what_others_put_beside_a_stage_s_links_is_not_removed(stage: PlannedStage, tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "new").write_text("new")
    linking = replace(stage, links=((tmp_path / "pool" / "v1.parquet", tmp_path / "new"),))
    make_links(linking)
    (tmp_path / "pool" / "mine.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"mine.parquet was not put there by the run, which reads all of .*pool"):
        make_links(linking)
    assert (tmp_path / "pool" / "mine.parquet").read_text() == "mine"


def test_a_plan_that_parses(stage: PlannedStage, tmp_path: Path) -> None:
    check_plan([stage], tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = (", r"cannot be imported \(SyntaxError: '\(' was never closed"),
        ("\nimport nothing_of_the_kind", r"cannot be imported \(ModuleNotFoundError: .*, .*own.py:2\)"),
        ("raise SystemExit(2)", r"cannot be imported \(SystemExit: 2, .*own.py:1\)"),
        ("def main(config: Unknown): ...", r"cannot be imported \(NameError: "),
        ("", r"must have a function main\(config: MyConfig\)"),
        ("def main(settings: int): ...", r"must have a function main\(config: MyConfig\)"),
        ("def main(config: int): ...", r"must have a function main\(config: MyConfig\)"),
    ],
)
def test_a_recipe_of_ones_own_that_is_none_is_a_sentence(
    stage: PlannedStage, tmp_path: Path, content: str, words: str
) -> None:
    from dataclasses import replace

    (tmp_path / "own.py").write_text(content)
    with pytest.raises(InputError, match=rf"^v3/sft: recipe: .*own.py {words}"):
        check_plan([replace(stage, recipe=str(tmp_path / "own.py"))])


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
