"""Stages forked from a warm process behave as those started cold."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import FakeRun

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages start cold here")


def test_same_results_and_kill_9(diamond: FakeRun) -> None:
    diamond.configure("d", text="D", seconds=20)
    driver = diamond.start(how="warm")
    diamond.wait_for("start", "d", seconds=60)
    finished = {r["stage"]: r for r in diamond.ledger() if r["event"] == "finished"}
    assert set(finished) == {"a", "b", "c"}
    assert finished["b"]["peak_memory_mb"] > finished["a"]["peak_memory_mb"] + 50, "b has torch, a started cold"
    driver.kill()
    driver.communicate()
    diamond.wait_until_dead()
    diamond.configure("d", text="D")
    assert diamond.drive().returncode == 0
    assert diamond.results()["d/out.txt"] == "D 0 B 0 A 0  C 0 A 0 "
    assert "started again" not in (diamond.here / "run" / "logs" / "b.log").read_text()
    assert (diamond.here / "run" / "logs" / "b.log").read_text().count("$ ") == 1


@pytest.mark.doors
def test_failure_of_one_of_two_processes_ends_the_stage(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A")
    fake_run.add("two", "a", launch={"processes": 2}, text="2")
    fake_run.add("lame", "two", launch={"processes": 2}, mode="lame", seconds=30)
    failed = fake_run.drive(how="warm")
    assert failed.returncode == 1 and "lame: ValueError: the second process cannot go on" in failed.stderr
    assert fake_run.results()["two/out.txt"] == "2 0 A 0 " and "two" in fake_run.traced("join")
    assert fake_run.times()["start", "lame"] and ("end", "lame") not in fake_run.times()
    assert not fake_run.alive()


def test_interrupt_leaves_no_orphan(diamond: FakeRun) -> None:
    diamond.configure("b", text="B", mode="stubborn", seconds=30)
    driver = diamond.start(how="warm")
    diamond.wait_for("start", "b", seconds=60)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=600)
    assert driver.returncode == 130 and not diamond.alive()
