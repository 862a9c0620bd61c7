"""What a terminal sees, and a log does not; and what is left where somebody asked for quiet."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from rlhf.errors import InputError, mistakes_in_a_sentence
from rlhf.iteration.progress import Progress
from rlhf.stage import Stage, StageConfig, open_stage
from rlhf.stage.progress import progress_bar
from rlhf.terminal import RED, YELLOW, be_quiet, coloured, note, painted


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rlhf.terminal.quiet._quiet", False)


def test_colours_are_for_a_terminal_that_may_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert painted("word", RED, Terminal()) == "\x1b[31mword\x1b[0m"
    assert painted("word", RED, io.StringIO()) == "word", "a log or a pipe"
    monkeypatch.setenv("NO_COLOR", "")
    assert coloured(Terminal()), "an empty one says nothing"
    monkeypatch.setenv("NO_COLOR", "1")
    assert painted("word", RED, Terminal()) == "word"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not coloured(Terminal())


def finished(output: Path, **options: bool) -> Stage:
    stage = open_stage(StageConfig(output=output, **options))
    with stage.work():
        stage.write_json("figures.json", {"a": 1}, shown="| a table |")
        stage.say("what was mixed in", error=True)
        with progress_bar(2, "train", "step", training=True) as bar:
            bar.update(2)
        note("goes on at step 2")
        stage.closing.figures(reward=0.5)
        stage.closing.suspect(["the loss rose"])
    return stage


def test_a_quiet_stage_says_its_last_line_and_what_is_suspicious(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = finished(tmp_path / "quiet", quiet=True)
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert first.startswith(f"{stage.output}: finished in 0:0") and second == "  suspicious: the loss rose"
    finished(tmp_path / "other")  # the next one in this process is as it was asked
    said = capsys.readouterr()
    assert said.out == "| a table |\n"
    assert "train: 2/2 steps" in said.err and "goes on at step 2" in said.err and "reward 0.5" in said.err


def test_on_a_terminal_what_is_suspicious_and_an_error_have_a_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    finished(tmp_path / "quiet", quiet=True)
    assert stream.getvalue().splitlines()[1] == "\x1b[33m  suspicious: the loss rose\x1b[0m"
    with pytest.raises(SystemExit), mistakes_in_a_sentence():
        raise InputError("seed: must be a number")
    assert stream.getvalue().splitlines()[2] == "\x1b[31merror:\x1b[0m seed: must be a number"


def test_a_quiet_driver_says_what_needs_somebody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(3, quiet=True)
    progress.say("v1/sft", "started")
    progress.warn("v1/sft", "suspicious: the loss rose")
    progress.warn("v1/sft", "FAILED after 0:03", RED)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in lines] == [
        ["v1/sft", "suspicious:", "the", "loss", "rose"],
        ["v1/sft", "FAILED", "after", "0:03"],
    ]
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    Progress(3).say("v1/sft", "done", "32")
    Progress(3).warn("v1/sft", "slow")
    assert "\x1b[32mdone\x1b[0m" in stream.getvalue() and f"\x1b[{YELLOW}mslow\x1b[0m" in stream.getvalue()


def test_notes_are_none_where_it_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    be_quiet(True)
    note("a word")
    be_quiet(False)
    note("another")
    assert capsys.readouterr().err == "another\n"
