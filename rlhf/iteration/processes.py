"""One stage as a process group: started, waited for, stopped. Nothing of it outlives the driver."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf.iteration.failures import out_of_memory_kills
from rlhf.iteration.plan import PlannedStage, recipe_file
from rlhf.iteration.warm import WarmStart
from rlhf.lifetime import GRACE_SECONDS, RUN_MARK, die_with
from rlhf.shipped import RECIPES


def command_of(stage: PlannedStage, recipes: Path = RECIPES) -> list[str]:
    """The command line of a stage: plain python for one process (it is the same), else `accelerate launch`."""
    recipe = recipe_file(stage, recipes)
    if recipe.is_relative_to(Path.cwd()):
        recipe = recipe.relative_to(Path.cwd())
    if stage.processes == 1:
        return [sys.executable, str(recipe), *stage.arguments]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    numbers = ["--num_processes", str(stage.processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *numbers, "--main_process_port", "0", str(recipe), *stage.arguments]


def extra_environment(processes: int = 1) -> dict[str, str]:
    """Variables that a stage runs with, where the user has not set them: one thread a process, CPU where no GPU is."""
    wanted = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if processes > 1 and not has_gpu():
        wanted["ACCELERATE_USE_CPU"] = "true"
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def has_gpu() -> bool:
    """Whether there is one, without importing torch."""
    devices = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(os.path.exists(device) for device in devices)


class StageProcess:
    """A running stage. Its output goes to `log`, appended below the command.

    Args:
        stage: of the plan.
        command: that starts it, and that the log shows.
        log: file of its output.
        run: the run's folder.
        warm: fork it from this one where possible; None: start it cold.
    """

    def __init__(
        self, stage: PlannedStage, command: Sequence[str], log: Path, run: Path, warm: WarmStart | None = None
    ) -> None:
        self.stage = stage
        self.log = log
        self.begun = time.monotonic()
        self.peak_memory_mb = 0.0
        self.killed_before = out_of_memory_kills()
        self.returncode: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        extra = extra_environment(stage.processes)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {' '.join(command)}\n")
            stream.flush()
            self.log_start = stream.tell()
            script = list(command[-len(stage.arguments) - 1 :])
            pid = warm.start(script, log, extra, stage.processes) if warm else None
            if pid is None:
                self._popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=os.environ | extra | {RUN_MARK: str(run.resolve())},
                    start_new_session=True,
                    preexec_fn=die_with(os.getpid()),
                )
                pid = self._popen.pid
        self.pid = pid

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.begun

    def poll(self) -> int | None:
        """Exit status once it has ended (negative: the signal that killed it), else None."""
        if self.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                if self._popen is not None:
                    self._popen.returncode = self.returncode
                unit = 1 if sys.platform == "darwin" else 1024
                self.peak_memory_mb = round(usage.ru_maxrss * unit / 2**20, 1)
        return self.returncode

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
