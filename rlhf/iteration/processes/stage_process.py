"""One stage as a process group: started, waited for, stopped. Nothing of it outlives the driver."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf.iteration.plan import RECIPES, PlannedStage, recipe_file
from rlhf.iteration.processes.failures import out_of_memory_kills
from rlhf.iteration.processes.warm import WarmStart
from rlhf.launch import VISIBLE
from rlhf.lifetime import GRACE_SECONDS, RUN_MARK, die_with
from rlhf.paths import from_here

OWN = "RLHF_"
"""First letters of the variables that say to a run's stages what its driver was told."""


def command_of(stage: PlannedStage, recipes: Path = RECIPES, gpus: Sequence[str] | None = None) -> list[str]:
    """The whole command line of a stage, as it can be given to a shell.

    Plain python for one process (it is the same), else `rlhf.launch`; after the prefix of its launch, if there is one,
    and after `env` with the variables that it is to have.

    Args:
        gpus: dealt to it; None: none are dealt out yet.
    """
    launch, variables = stage.launch, dict(stage.launch.env)
    recipe = recipe_file(stage, recipes)
    if recipe.is_relative_to(Path.cwd()):
        recipe = recipe.relative_to(Path.cwd())
    python = [sys.executable]
    if launch.processes > 1 or launch.accelerate is not None:
        python += ["-m", "rlhf.launch"]
        options = {
            "num_machines": launch.machines if launch.machines > 1 or launch.accelerate else None,
            "num_processes": launch.processes,
            "config_file": launch.accelerate,
            "mixed_precision": launch.mixed_precision,
        }
        python += [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    elif launch.mixed_precision is not None:
        variables["ACCELERATE_MIXED_PRECISION"] = launch.mixed_precision
    if launch.prefix:  # what starts processes elsewhere need not hand on the environment
        variables = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(OWN)} | variables
    if gpus is None and isinstance(launch.gpus, tuple):
        gpus = [str(name) for name in launch.gpus]
    elif gpus is None and launch.gpus == 0:
        gpus = []
    if gpus is not None:
        variables[VISIBLE] = ",".join(gpus)
    env = ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
    return [*launch.prefix, *env, *python, str(recipe), *stage.arguments]


def by_hand(stage: PlannedStage, recipes: Path = RECIPES) -> str:
    """The same for a person who stands here."""
    return shlex.join(map(from_here, command_of(stage, recipes)))


def extra_environment() -> dict[str, str]:
    """Variables that a stage runs with, where the user has not set them: one thread a process, output at once."""
    wanted = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


class StageProcess:
    """A running stage. Its output goes to `log`, appended below the command.

    Args:
        stage: of the plan.
        command: that starts it, and that the log shows.
        log: file of its output.
        run: the run's folder.
        warm: fork it from this one, if its launch is plain; None: start it cold.
        gpus: dealt to it, see `rlhf.iteration.processes.gpus`.
    """

    def __init__(
        self,
        stage: PlannedStage,
        command: Sequence[str],
        log: Path,
        run: Path,
        warm: WarmStart | None = None,
        gpus: Sequence[str] = (),
    ) -> None:
        self.stage = stage
        self.gpus = gpus
        self.log = log
        self.begun = time.monotonic()
        self.peak_memory_mb = 0.0
        self.killed_before = out_of_memory_kills()
        self.returncode: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        extra = extra_environment()
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {shlex.join(command)}\n")
            stream.flush()
            self.log_start = stream.tell()
            script = list(command[-len(stage.arguments) - 1 :])
            asked = stage.launch.mixed_precision
            if asked is not None:
                extra["ACCELERATE_MIXED_PRECISION"] = asked
            pid = warm.start(script, log, extra, stage.processes) if warm and stage.launch.is_plain else None
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
