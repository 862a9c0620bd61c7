"""Kill it anywhere, start it again: it goes on, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import FakeRun

EXPECTED = {
    "a/out.txt": "A 0 ",
    "b/out.txt": "B 0 A 0 ",
    "c/out.txt": "C 0 A 0 ",
    "d/out.txt": "D 0 B 0 A 0  C 0 A 0 ",
}


def finished_stages_ran_once_after(run: FakeRun) -> None:
    """No stage starts again after the ledger said that it finished."""
    finished: set[str] = set()
    for record in run.ledger():
        if record["event"] == "started":
            assert record["stage"] not in finished
        elif record["event"] == "finished":
            finished.add(record["stage"])
    assert finished == {"a", "b", "c", "d"}


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.long)])
def test_kill_9_of_the_driver_at_random_moments(diamond: FakeRun, seed: int) -> None:
    moments = random.Random(seed)
    for _ in range(4):
        driver = diamond.start()
        time.sleep(moments.uniform(0.1, 1.2))
        driver.kill()
        driver.communicate()
        if moments.random() < 0.5:  # else the next driver meets what this one left
            diamond.wait_until_dead()
    assert diamond.drive().returncode == 0
    assert diamond.results() == EXPECTED
    assert not list((diamond.here / "run").glob("*.partial"))
    finished_stages_ran_once_after(diamond)


def test_kill_9_of_a_stage(diamond: FakeRun) -> None:
    diamond.configure("b", text="B", seconds=30)
    driver = diamond.start()
    diamond.wait_for("start", "b")
    pid = next(int(line.split()[3]) for line in (diamond.here / "trace").read_text().splitlines() if " b " in line)
    os.kill(pid, signal.SIGKILL)
    _, errors = driver.communicate(timeout=600)
    assert driver.returncode == 1 and "b: killed by signal 9 (SIGKILL): somebody killed it" in errors
    assert (diamond.here / "run" / "b.partial").exists() and not (diamond.here / "run" / "b").exists()
    diamond.configure("b", text="B")
    assert diamond.drive().returncode == 0
    assert diamond.results() == EXPECTED
    assert not (diamond.here / "run" / "b.partial").exists()
    finished_stages_ran_once_after(diamond)


def test_a_stage_that_outlives_its_killed_driver_is_ended_before_it_starts_again(diamond: FakeRun) -> None:
    diamond.configure("a", text="A", seconds=300, mode="stubborn")
    driver = diamond.start()
    diamond.wait_for("start", "a")
    driver.kill()
    driver.communicate()
    assert diamond.alive(), "a stubborn stage takes no hint"
    time.sleep(0.5)
    diamond.configure("a", text="A")
    assert diamond.drive().returncode == 0
    attempts = [r["time"] for r in diamond.ledger() if r["event"] in ("begun", "ended")]
    assert len(attempts) == 4 and 0 < attempts[1] - attempts[0] < attempts[2] - attempts[0] - 0.4, "its time counts"
    assert diamond.results() == EXPECTED
    assert diamond.traced("end").count("a") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_no_orphan(diamond: FakeRun, number: signal.Signals) -> None:
    diamond.configure("b", text="B", seconds=30)
    diamond.configure("c", text="C", seconds=30)
    driver = diamond.start()
    diamond.wait_for("start", "b")
    diamond.wait_for("start", "c")
    driver.send_signal(number)
    driver.communicate(timeout=600)
    assert driver.returncode == 130
    assert not diamond.alive()
    assert diamond.ledger()[-1]["event"] == "ended"


def test_a_kill_between_the_rename_and_the_ledger(diamond: FakeRun) -> None:
    assert diamond.drive().returncode == 0
    ledger = diamond.here / "run" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    cut = max(i for i, line in enumerate(lines) if json.loads(line)["event"] == "finished")
    ledger.write_text("".join(lines[:cut]) + lines[cut][:25])  # … and in the middle of a line
    again = diamond.drive()
    assert again.returncode == 0, again.stderr
    assert sorted(diamond.traced()) == ["a", "b", "c", "d"], "d was whole: it is taken over"
    assert [r["stage"] for r in diamond.ledger() if r["event"] == "finished"].count("d") == 1
    assert diamond.results() == EXPECTED
