"""One stage as a process group: started, waited for, stopped. Nothing of it outlives the driver."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf.iteration.plan import RECIPES, PlannedStage

RUN_MARK = "RLHF_RUN"
GRACE_SECONDS = 5.0
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def command_of(stage: PlannedStage, recipes: Path = RECIPES) -> list[str]:
    """The command line of a stage: plain python for one process (it is the same), else `accelerate launch`."""
    recipe = recipes / f"{stage.recipe}.py"
    if recipe.is_relative_to(Path.cwd()):
        recipe = recipe.relative_to(Path.cwd())
    if stage.processes == 1:
        return [sys.executable, str(recipe), *stage.arguments]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    numbers = ["--num_processes", str(stage.processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *numbers, "--main_process_port", "0", str(recipe), *stage.arguments]


def extra_environment(stage: PlannedStage) -> dict[str, str]:
    """Variables that a stage runs with, where the user has not set them: one thread a process, CPU where no GPU is."""
    wanted = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if stage.processes > 1 and not _has_gpu():
        wanted["ACCELERATE_USE_CPU"] = "true"
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _has_gpu() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(
        os.path.exists(device) for device in ("/dev/nvidia0", "/dev/kfd")
    )


class StageProcess:
    """A running stage. Its output goes to `log`, appended below the command."""

    def __init__(self, stage: PlannedStage, command: Sequence[str], log: Path, run: Path) -> None:
        self.stage = stage
        self.log = log
        self.begun = time.monotonic()
        self.peak_memory_mb = 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | extra_environment(stage) | {RUN_MARK: str(run.resolve())}
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {' '.join(command)}\n")
            stream.flush()
            self.log_start = stream.tell()
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        self.pid = self._popen.pid

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.begun

    def poll(self) -> int | None:
        """Exit status once it has ended (negative: the signal that killed it), else None."""
        if self._popen.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._popen.returncode = os.waitstatus_to_exitcode(status)
                unit = 1 if sys.platform == "darwin" else 1024
                self.peak_memory_mb = round(usage.ru_maxrss * unit / 2**20, 1)
        return self._popen.returncode

    def signal_group(self, number: int) -> None:
        """Send a signal to the stage's whole process group; a group that is gone is fine."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def stop(processes: Sequence[StageProcess]) -> None:
    """End the processes and all their children: asked first, killed after a grace period."""
    for process in processes:
        process.signal_group(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        process.signal_group(signal.SIGKILL)
        while process.poll() is None:
            time.sleep(0.02)


def end_leftovers(run: Path) -> None:
    """Kill what a killed driver of this run left running, and wait until it is gone (Linux)."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (pids := _marked_processes(run)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _marked_processes(run: Path) -> list[int]:
    """Processes whose environment says that they belong to this run."""
    mark = f"{RUN_MARK}={run.resolve()}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0") and environment.parent.name != str(os.getpid()):
                found.append(int(environment.parent.name))
    return found


def _die_with(parent: int):  # type: ignore[no-untyped-def]
    """On Linux the child is asked to end when its driver dies, even by SIGKILL."""
    if _LIBC is None:
        return None

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
