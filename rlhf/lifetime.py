"""That nothing outlives what started it: a launcher's workers end with it; of a driver's run, stages end with it and
leftovers are found by a mark; a server that a stage starts has a keeper.

    python -I rlhf/lifetime.py FOLDER LOG COMMAND …     # the keeper, until its standard input ends
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

RUN_MARK = "RLHF_RUN"
GRACE_SECONDS = 5.0
KEPT_SECONDS = 20.0
LAUNCHERS_LEAVE = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "ACCELERATE_DYNAMO_BACKEND")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with(parent: int) -> Callable[[], None] | None:
    """What a child calls first so that, on Linux, it is asked to end when `parent` dies, even by SIGKILL."""
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def end_with_launcher() -> None:
    """Have this process ended when the launcher that started it (accelerate launch, torchrun) is killed (Linux).

    Launchers end their workers when they are asked to end, but not when they are killed. A process that a shell started
    is left alone: it may outlive that shell.
    """
    if _LIBC is not None and any(name in os.environ for name in LAUNCHERS_LEAVE):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose own parent ends (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_leftovers(run: Path) -> None:
    """Kill what a killed driver of this run left running, and wait until it is gone (Linux)."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (pids := marked_processes(run)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def marked_processes(run: Path) -> list[int]:
    """Processes whose environment says that they belong to this run, this one left out."""
    mark = f"{RUN_MARK}={run.resolve()}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0") and environment.parent.name != str(os.getpid()):
                found.append(int(environment.parent.name))
    return found


def keep(folder: str, log: str, command: Sequence[str]) -> None:
    """Run a command until it ends or standard input does: whoever holds its other end is gone then.

    At the end its whole process group is asked to end, after `KEPT_SECONDS` killed. The folder is removed, and the log
    where nobody is left to read it. A signal that ended the command is said.
    """
    adopt_orphans()
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    alone = False
    while child.poll() is None and not asked_to_end and not alone:
        alone = bool(select.select([sys.stdin], [], [], 0.1)[0])
    if child.returncode is not None and child.returncode < 0:
        print(f"ended by {signal.Signals(-child.returncode).name}", flush=True)
    deadline = time.monotonic() + KEPT_SECONDS
    with contextlib.suppress(ProcessLookupError):  # until the group is empty: some tidy up after the others
        os.killpg(child.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    if alone:
        Path(log).unlink(missing_ok=True)


if __name__ == "__main__":
    keep(sys.argv[1], sys.argv[2], sys.argv[3:])
