"""A warm Python that single-machine CPU stages are forked from: importing torch costs each stage 4 seconds otherwise.

    driver ── one JSON line a stage ──> warm process ── fork ──> the recipe, as `python recipes/X.py …` would run it
           <── its process id ────────

The stage becomes the driver's own child (the driver is its subreaper), in a session of its own, with its own memory; it
ends as any process ends. Linux without a GPU only: CUDA does not survive a fork. Elsewhere, and where this process
cannot be started, stages start cold. A stage of several processes gets what `torchrun` would set in its environment.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.lifetime import RUN_MARK, adopt_orphans, die_with

MODULES = (
    "torch",
    "torch._dynamo",
    "accelerate",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "rlhf.finetuning.supervised",
    "rlhf.ppo.algorithm",
    "rlhf.ppo.setup",
    "rlhf.rewards.loading",
    "rlhf.rewards.scoring",
    "rlhf.sampling.multi_process",
    "rlhf.training.accelerator",
    "rlhf.training.checkpoints",
)


class WarmStart:
    """The driver's side.

    Args:
        run: the run's folder, the mark of all its processes.
        environment: what the driver's own lacks.
    """

    def __init__(self, run: Path, environment: Mapping[str, str]) -> None:
        adopt_orphans()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlhf.iteration.processes.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment | {RUN_MARK: str(run.resolve())},
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),
        )

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str], processes: int) -> int | None:
        """Fork a stage once the imports are done; its process id. None: there is no warm process, start it cold."""
        order = {"argv": list(command), "log": str(log), "environment": dict(environment), "processes": processes}
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """End the warm process; stages that run go on."""
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """The warm process: import, then fork a stage for each line of standard input. Returns in those stages only."""
    driver = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            between_pid = os.getpid()
            stage = os.fork()
            if stage:
                os.write(writer, str(stage).encode())
                os._exit(0)
            os.close(writer)
            os.close(reader)
            while os.getppid() == between_pid:
                time.sleep(0.001)
            _become(order, driver)
            return
        os.close(writer)
        os.waitpid(between, 0)
        with os.fdopen(reader, "rb") as answer:
            sys.stdout.write(answer.read().decode() + "\n")
            sys.stdout.flush()
    os._exit(0)


def _become(order: Mapping[str, Any], driver: int) -> None:
    """Make this process the stage: session, output, environment, arguments; with several processes, its launcher."""
    os.setsid()
    prepare = die_with(driver)
    if prepare is not None:
        prepare()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.devnull) as nothing, open(order["log"], "a", encoding="utf-8") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(order["environment"])
    sys.argv = order["argv"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    if order["processes"] > 1:
        _launch(order["processes"])


def _launch(processes: int) -> None:
    """Fork the stage's workers and end with them; returns in the workers only. The first failure ends all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launcher = os.getpid()
    workers = set()
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            prepare = die_with(launcher)
            if prepare is not None:
                prepare()
            own = common | {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"}
            os.environ.update({name: str(value) for name, value in own.items()})
            return
        workers.add(pid)
    worst = 0
    while workers:
        pid, status = os.wait()
        workers.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not worst:
            worst = code if code > 0 else 128 - code
            for other in workers:
                os.kill(other, signal.SIGTERM)
    os._exit(worst)


if __name__ == "__main__":
    serve()
    runpy.run_path(sys.argv[0], run_name="__main__")
