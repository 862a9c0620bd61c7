"""The bar of long work: plain lines in a log, one a minute, on one process a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.data.loading import load_preferences
from rlhf.stage import progress


def test_in_a_log_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    with progress.progress_bar(4, "train", "step", done=2, training=True) as bar:
        for loss in (0.5, 0.25):
            bar.set_postfix(loss=loss, refresh=False)
            bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = [line.split(" in ")[0] for line in said.splitlines()]
    assert lines == ["train: 2/4 steps", "train: 3/4 steps", "train: 4/4 steps", "train: 4/4 steps"]
    assert said.splitlines()[1].endswith("to go, loss=0.5")


def test_a_bar_below_another_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    with (
        progress.progress_bar(2, "ppo", "iteration", training=True),
        progress.progress_bar(2, "sampling", "answer") as b,
    ):
        b.update()
    said = capsys.readouterr().err
    assert "sampling: 1/2 answers" in said and "\x1b" not in said and all(said.splitlines())


def test_a_bar_of_shared_work_counts_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, two processes that drew 5 prompts' answers said "of 3"."""
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    with progress.shared_work(3, 5), progress.progress_bar(3, "sampling", "prompt", training=True) as bar:
        for _ in range(3):
            bar.update()
    with progress.progress_bar(1, "scoring", "answer", training=True) as bar:
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    said = [line.split(" in ")[0].removeprefix("sampling: ") for line in lines if line.startswith("sampling")]
    assert said[:4] == ["0/5 prompts", "2/5 prompts", "3/5 prompts", "5/5 prompts"]
    assert lines[-1].startswith("scoring: 1/1 answers"), "behind it nothing is shared"
    assert all(progress.BAR_LINE.fullmatch(line) for line in lines), lines


def test_a_short_work_writes_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar(3, "scoring", "answer") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
    with progress.progress_bar(3, "train", "step", training=True) as bar:
        bar.update(3)
    assert [line[:15] for line in capsys.readouterr().err.splitlines()] == ["train: 0/3 step", "train: 3/3 step"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with progress.progress_bar(3, "train", "step", training=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_of_several_processes_one_says_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"}\n')
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert len(load_preferences(rows, on_bad_row="skip")) == 1
        said.append(capsys.readouterr().err.count("skipped 1 of 2 rows"))
    assert said == [1, 0]
