"""Chunks on all cores: in order, read as they are needed, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rlhf.data import cores
from rlhf.data.cores import TOKENIZERS_THREADS, chunks_of, on_all_cores
from rlhf.errors import InputError

ENDLESS = """
import itertools, os, sys, time
from rlhf.data import cores
cores.usable_cores = lambda: 2
def work(chunk):
    return os.getpid()
pids = cores.on_all_cores(work, itertools.count())
print(*{next(pids) for _ in range(40)}, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)


def test_chunks_hold_every_row_once() -> None:
    assert list(chunks_of(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]] and list(chunks_of([], 3)) == []


def test_results_come_in_order_and_one_chunk_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKENIZERS_THREADS, "true")

    def work(chunk: list[int]) -> tuple[int, int, str]:
        time.sleep(0.05 if chunk[0] == 0 else 0)  # the first is done last
        return sum(chunk), os.getpid(), os.environ[TOKENIZERS_THREADS]

    found = list(on_all_cores(work, chunks_of(range(20), 2)))
    assert [total for total, _, _ in found] == [4 * i + 1 for i in range(10)]
    assert os.getpid() not in {pid for _, pid, _ in found} and {threads for _, _, threads in found} == {"false"}
    assert list(on_all_cores(work, [[5]])) == [(5, os.getpid(), "true")] and os.environ[TOKENIZERS_THREADS] == "true"
    assert list(on_all_cores(work, [])) == []


def test_chunks_are_read_as_they_are_needed_and_a_mistake_ends_it() -> None:
    read: list[int] = []

    def chunks() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    def work(number: int) -> int:
        if number == 20:
            raise InputError(f"row {number}: bad")
        return number

    found = on_all_cores(work, chunks())
    assert [next(found) for _ in range(10)] == list(range(10)) and len(read) <= 10 + 7
    with pytest.raises(InputError, match="row 20: bad"):
        list(found)
    assert len(read) <= 20 + 7


def test_a_kill_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers and all(alive(pid) for pid in workers)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
