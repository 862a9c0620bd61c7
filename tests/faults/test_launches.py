"""The driver with launches: failures that are tried again, GPUs dealt out, two machines behind a prefix."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlhf.errors import InputError, mistakes_in_a_sentence

if TYPE_CHECKING:
    from conftest import FakeRun

SRUN = f"{sys.executable} {Path(__file__).parents[1] / 'srun.py'} -N 2"


def test_a_stage_that_dies_twice_works_the_third_time(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A", mode="flaky", launch={"retries": 2, "retry_seconds": 0.01})
    fake_run.add("b", text="B")
    fake_run.add("c", "a", "b", text="C")
    done = fake_run.drive()
    assert done.returncode == 0, done.stderr
    assert fake_run.results()["c/out.txt"] == "C 0 A 0  B 0 "
    events = [record["event"] for record in fake_run.ledger() if record.get("stage") == "a"]
    assert events == ["started", "failed", "started", "failed", "started", "finished"]
    assert "killed by signal 9 (SIGKILL)" in done.stdout and "starts again in 0.01 s (retry 1 of 2)" in done.stdout
    assert "starts again in 0.02 s (retry 2 of 2)" in done.stdout and fake_run.traced().count("b") == 1


def test_a_stage_is_not_tried_more_often_than_its_launch_says(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A", mode="flaky", launch={"retries": 1, "retry_seconds": 0})
    failed = fake_run.drive()
    assert failed.returncode == 1 and "a: killed by signal 9" in failed.stderr and "by hand:" in failed.stderr
    assert (fake_run.here / "run" / "a.tries").read_text() == "xx"


@pytest.mark.parametrize("launch", [{}, {"processes": 2}])
def test_a_mistake_of_the_user_s_is_not_tried_again(fake_run: FakeRun, launch: dict[str, int]) -> None:
    """Also where the main process meets it later than another, whose end has the launcher end them all."""
    fake_run.add("a", mode="refuse", seconds=1, launch={**launch, "retries": 5, "retry_seconds": 0})
    failed = fake_run.drive()
    assert failed.returncode == 1 and "a: text: must be better" in failed.stderr
    assert [r["event"] for r in fake_run.ledger() if r.get("stage") == "a"] == ["started", "failed"]


@pytest.mark.parametrize(("rank", "waited"), [("0", 0), ("1", 1)])
def test_a_process_whose_main_one_has_no_mistake_says_its_own(
    rank: str, waited: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("rlhf.errors.time.sleep", waits.append)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended, mistakes_in_a_sentence():
        raise InputError("text: must be better")
    assert (ended.value.code, len(waits)) == (2, waited) and capsys.readouterr().err == "error: text: must be better\n"


def test_two_stages_of_one_gpu_side_by_side_see_one_each(fake_run: FakeRun) -> None:
    for name in "abc":
        fake_run.add(name, text=name, seconds=0.4)
    fake_run.add("d", text="d", seconds=0.4, launch={"gpus": 0})
    fake_run.add("both", "a", "b", text="both", launch={"gpus": 2})
    done = fake_run.drive(slots=4, gpus=["4", "7"])
    assert done.returncode == 0, done.stderr
    run, at = fake_run.here / "run", fake_run.times()
    seen = {name: (run / name / "gpus.txt").read_text() for name in ("a", "b", "c", "d", "both")}
    assert {seen["a"], seen["b"]} == {"4", "7"} and seen["c"] in {"4", "7"} and seen["d"] == ""
    assert seen["both"] == "4,7"
    events = [(r["event"], r.get("stage")) for r in fake_run.ledger()]
    first_ended = min(events.index(("finished", name)) for name in "ab")
    assert events.index(("started", "d")) < first_ended, "it takes none, and waits for none"
    assert events.index(("started", "c")) > first_ended
    for one, other in (("a", "c"), ("b", "c"), ("a", "both"), ("b", "both"), ("c", "both")):
        if seen[one] in seen[other]:
            assert at["end", one] <= at["start", other] or at["end", other] <= at["start", one], (one, other)
    started = next(r for r in fake_run.ledger() if r["event"] == "started" and r["stage"] == "both")
    assert started["command"][:2] == ["env", "CUDA_VISIBLE_DEVICES=4,7"]


def test_more_gpus_than_there_are_is_told_before_anything_starts(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A")
    fake_run.add("b", "a", text="B", launch={"processes": 3})
    refused = fake_run.drive(slots=4, gpus=["0", "1"])
    assert refused.returncode == 1 and "launch (b): 3 GPUs, one a process, and this machine has 2" in refused.stderr
    assert not fake_run.traced()


@pytest.mark.doors
def test_a_prefix_starts_a_stage_on_two_machines(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A", launch={"env": {"WORD": "x"}})
    two = {"machines": 2, "processes": 2, "prefix": SRUN}
    fake_run.add("two", "a", text="2", launch=two)
    done = fake_run.drive()
    assert done.returncode == 0, done.stderr
    assert fake_run.results()["two/out.txt"] == "2 0 A 0 "
    assert fake_run.traced("join") == ["two"], "the second machine's process has a rank of its own"
    fake_run.add("lame", "two", mode="lame", seconds=30, launch=two)
    failed = fake_run.drive()
    assert failed.returncode == 1 and "lame: ValueError: the second process cannot go on" in failed.stderr
    assert not fake_run.alive()


@pytest.mark.doors
def test_the_script_of_the_docs_starts_a_stage_by_ssh(fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ssh itself is replaced: it runs what it is given here."""
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    on_all, ssh = fake_run.here / "on_all", fake_run.here / "ssh"
    on_all.write_text(re.findall(r"```bash\n(#!.*?)```", page, re.DOTALL)[0])
    ssh.write_text('#!/bin/bash\n[ "$1" = -tt ] && exec bash -c "$3"\n')
    for script in (on_all, ssh):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake_run.here}:{os.environ['PATH']}")
    prefix = f"env HOSTS='localhost 127.0.0.1' {on_all}"
    fake_run.add("two", text="two  words; $HOME", launch={"machines": 2, "processes": 2, "prefix": prefix})
    done = fake_run.drive()
    assert done.returncode == 0, done.stderr
    assert fake_run.results()["two/out.txt"] == "two  words; $HOME 0 " and fake_run.traced("join") == ["two"]


def test_another_launch_runs_nothing_again(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A")
    assert fake_run.drive().returncode == 0
    fake_run.stages.clear()
    fake_run.add("a", text="A", launch={"processes": 2, "env": {"X": 1}, "retries": 3, "prefix": "env"})
    again = fake_run.drive()
    assert again.returncode == 0 and fake_run.traced() == ["a"] and "finished earlier" in again.stdout
