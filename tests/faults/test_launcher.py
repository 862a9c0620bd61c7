"""A recipe started by hand ends with its launcher, even one that is killed, and not with the shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import FakeRun

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
LAUNCHERS = {
    "one": [
        *LAUNCH,
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ],
    "two": [*LAUNCH, "--config_file", str(ROOT / "ds_configs" / "accelerate_cpu_2.yaml"), "--main_process_port", "0"],
}


def _command(run: FakeRun, launcher: list[str]) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "TRACE": str(run.here / "trace"), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return [*launcher, str(run.here / "fake.py"), "--output", str(run.here / "out"), "--seconds", "300"], environment


def _workers(run: FakeRun, count: int, seconds: float = 60.0) -> list[int]:
    """Process ids of those that work, once they are so many."""
    deadline = time.monotonic() + seconds
    trace = run.here / "trace"
    while not trace.exists() or len(trace.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "they did not start"
        time.sleep(0.05)
    return [int(line.split()[3]) for line in trace.read_text().splitlines()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends a child with its parent on Linux alone")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_workers_end_with_their_killed_launcher(fake_run: FakeRun, launcher: str) -> None:
    command, environment = _command(fake_run, LAUNCHERS[launcher])
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = _workers(fake_run, {"one": 1, "two": 2}[launcher])
    assert process.pid not in workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60.0
    while (alive := [pid for pid in workers if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive, "they outlived it"


def test_a_recipe_outlives_the_shell_that_started_it(fake_run: FakeRun) -> None:
    command, environment = _command(fake_run, [sys.executable])
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"):
        environment.pop(name, None)
    subprocess.run(
        ["sh", "-c", '"$@" & exit 0', "sh", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    (worker,) = _workers(fake_run, 1)
    try:
        time.sleep(0.5)
        assert _alive(worker), "its shell is gone"
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_launcher_that_is_asked_to_end_ends_its_workers_and_says_one_line(
    fake_run: FakeRun, processes: int, number: signal.Signals
) -> None:
    command, environment = _command(fake_run, [sys.executable, "-m", "rlhf.launch", "--num_processes", str(processes)])
    heeded = partial(signal.signal, number, signal.SIG_DFL)  # what a shell starts in the background ignores SIGINT
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, preexec_fn=heeded, **pipes)
    try:
        workers = _workers(fake_run, processes, seconds=300.0)
        process.send_signal(number)
        _, said = process.communicate(timeout=300.0)
    finally:
        process.kill()
    assert not [pid for pid in workers if _alive(pid)]
    assert said.splitlines()[-1] == f"ended by {number.name}, and its processes with it"
    assert "Traceback" not in said and "closing signal" not in said
    assert process.returncode == -number
