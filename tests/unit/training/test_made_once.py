"""What a stage's processes share is made by one of them, whole or not at all, and once for all attempts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.stage import InputPath, KeepingConfig, made_once, open_stage


@dataclass(frozen=True, kw_only=True)
class Config(KeepingConfig):
    """A stage.

    Args:
        source: read.
        number: decides.
    """

    source: InputPath
    number: int = 1


Attempt = Callable[..., str]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """An attempt of the stage, broken off unless `finish`; gives what is read of what was made, with who made it."""
    (tmp_path / "source").write_text("rows")

    def run(who: str, number: int = 1, *, finish: bool = False, folder: str = "out") -> str:
        stage = open_stage(Config(output=tmp_path / folder, source=tmp_path / "source", number=number))
        read = "nothing"
        try:
            with made_once(stage, "rows", lambda made: write(made / "rows", who)) as made, stage.work():
                read = (made / "rows").read_text() if made.exists() else read
                if not finish:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        return read

    return run


def write(file: Path, who: str) -> None:
    assert not file.exists(), "it is made in an empty folder"
    file.write_text(f"made by the {who}")
    if who == "mistaken":
        raise InputError("rows: bad")


def test_the_next_attempt_reads_it_and_it_is_gone_when_the_stage_is_finished(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt("first") == attempt("second") == "made by the first"
    assert attempt("third", finish=True) == "made by the first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage.json"]


def test_another_option_or_content_has_it_made_anew(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt("first") == "made by the first"
    assert attempt("second", number=2) == "made by the second"
    (tmp_path / "source").write_text("other rows")
    assert attempt("third", number=2) == "made by the third"


def test_a_mistake_leaves_nothing_behind(attempt: Attempt, tmp_path: Path) -> None:
    for before in (False, True):
        if before:
            attempt("first", folder="again")
        left = {path.name for path in tmp_path.iterdir()} - {"again.rows.partial"}
        with pytest.raises(InputError, match="rows: bad"):
            attempt("mistaken", number=2, folder="again")
        assert {path.name for path in tmp_path.iterdir()} == left


def test_what_a_kill_left_half_made_is_made_anew(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(
        "import os, sys\nfrom test_made_once import Config\nfrom rlhf.stage import made_once, open_stage\n"
        "from pathlib import Path\nhere = Path(sys.argv[1])\n"
        "def make(folder):\n    (folder / 'rows').write_text('half')\n    os.kill(os.getpid(), 9)\n"
        "with made_once(open_stage(Config(output=here / 'out', source=here / 'source')), 'rows', make):\n    pass\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path)]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode == -signal.SIGKILL
    assert (tmp_path / "out.rows.partial/rows").read_text() == "half"
    assert attempt("second", finish=True) == "made by the second"


def test_the_other_processes_make_nothing(attempt: Attempt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    assert attempt("other") == "nothing" and not (tmp_path / "out.rows.partial").exists()
    monkeypatch.setenv("RANK", "0")
    assert attempt("main") == "made by the main"
    monkeypatch.setenv("RANK", "1")
    assert attempt("other") == "made by the main"


def test_a_folder_of_somebody_else_s_is_not_emptied(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "out.rows.partial").mkdir()
    (tmp_path / "out.rows.partial/thesis").write_text("mine")
    with pytest.raises(InputError, match=r"out\.rows\.partial was not made by this stage"):
        attempt("first")
    assert (tmp_path / "out.rows.partial/thesis").read_text() == "mine"
