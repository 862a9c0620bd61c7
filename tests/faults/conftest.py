"""A pipeline of small scripts in place of the recipes, so that the driver is tried in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

RECIPE = '''
import os, signal, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path
from rlhf.configuration import run_recipe
from rlhf.errors import InputError
from rlhf.stage import InputPath, Kept, open_stage
from rlhf.stage.waiting import say_waiting

@dataclass(frozen=True)
class FakeConfig:
    """A stand-in.

    Args:
        output: folder.
        reads: what it reads.
        seconds: how long it works.
        mode: what goes wrong.
        text: what it writes.
        seed: written too.
        keep: counts its attempts in kept work.
    """
    output: Path
    reads: tuple[InputPath, ...] = ()
    seconds: float = 0.1
    mode: str = "well"
    text: str = ""
    seed: int = 0
    keep: bool = False

def trace(word, config):
    with open(os.environ["TRACE"], "a") as stream:
        stream.write(f"{word} {config.output.name} {time.time():.3f} {os.getpid()}\\n")

def traced():
    return Path(os.environ["TRACE"]).read_text()

def main(config: FakeConfig) -> None:
    if config.mode == "refuse":
        time.sleep(config.seconds if os.environ.get("RANK") == "0" else 0)
        raise InputError("text: must be better")
    if config.mode == "stubborn":  # takes no hint, and has a child
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ignore = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", ignore])
    if config.mode == "flaky":  # dies twice
        tries = config.output.parent / f"{config.output.name}.tries"
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        if len(tries.read_text()) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
    if config.mode == "lame" and os.environ["RANK"] == "1":
        raise ValueError("the second process cannot go on")
    if config.mode == "asks":
        say_waiting("people: 0 of 2 judgements")
    stage = open_stage(config)
    with stage.work(None, *[Kept("attempts", "attempts", (), {})] * config.keep) as folder:
        trace("start" if os.environ.get("RANK", "0") == "0" else "join", config)
        time.sleep(config.seconds)
        if config.keep:
            found = [path for path in (folder / "attempts").iterdir() if path.name != "origin.json"]
            (folder / "found.txt").write_text(str(len(found)))
            (folder / "attempts" / str(len(found))).touch()
        if config.mode == "crash":
            raise ValueError("the numbers do not add up")
        if os.environ.get("RANK", "0") != "0":
            return
        (folder / "gpus.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        (folder / "out.txt").write_text(f"{config.text} {config.seed} " + " ".join(p.read_text() for p in config.reads))
        while os.environ.get("WORLD_SIZE", "1") != "1" and f"join {config.output.name} " not in traced():
            time.sleep(0.05)  # a stage's processes meet before it ends
        trace("end", config)
    if config.mode == "late":
        raise ValueError("the copy elsewhere failed")

if __name__ == "__main__":
    run_recipe(main, FakeConfig)
'''

DRIVER = """
import json, signal, sys
from pathlib import Path
from rlhf.errors import InputError
from rlhf.iteration.driver import Driver, StageFailed
from rlhf.iteration.launching import Launches
from rlhf.iteration.plan import PlannedStage

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in a shell's background job inherit that it is ignored
here = Path(sys.argv[1])
def stage(name, config, reads, launch, makes, **overrides):
    output = here / "run" / name
    inputs = tuple(here / "run" / path for path in reads)
    options = {"output": str(output), "reads": json.dumps([str(p) for p in inputs])} | overrides
    launched = Launches({"default": launch}, 99).of(name, "fake")
    recipe = str(here / "fake.py") if makes else "fake"
    return PlannedStage(name, recipe, here / config, options, inputs, output, launched, makes=makes)

stages = [stage(**entry) for entry in json.loads((here / "plan.json").read_text())]
slots, how, more = int(sys.argv[2]), sys.argv[3] == "warm", json.loads(sys.argv[4])
try:
    Driver(stages, here / "run", slots=slots, recipes=here, warm=how, **more).execute()
except (InputError, StageFailed) as error:
    sys.exit(f"error: {error}")
except KeyboardInterrupt:
    sys.exit(130)
"""


@dataclass
class FakeRun:
    """A folder with the fake recipe, a plan and the run."""

    here: Path
    stages: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        name: str,
        *reads: str,
        launch: Mapping[str, Any] | None = None,
        makes: Mapping[str, str] | None = None,
        **config: Any,
    ) -> None:
        """Plan a stage; `reads` are stages whose out.txt it reads, or files of theirs; `config` goes into its YAML.

        With `makes` its recipe is one of the user's own.
        """
        (self.here / f"{name}.yaml").write_text(json.dumps(config or {"text": "x"}))
        entry = {"name": name, "config": f"{name}.yaml", "launch": dict(launch or {}), "makes": dict(makes or {})}
        self.stages.append(entry | {"reads": [read if "/" in read else f"{read}/out.txt" for read in reads]})
        (self.here / "plan.json").write_text(json.dumps(self.stages))

    def configure(self, name: str, **config: Any) -> None:
        (self.here / f"{name}.yaml").write_text(json.dumps(config))

    def start(self, slots: int = 2, how: str = "cold", **options: Any) -> subprocess.Popen[str]:
        """Start the driver; `options` are its own."""
        command = [sys.executable, str(self.here / "drive.py"), str(self.here), str(slots), how, json.dumps(options)]
        environment = os.environ | {"TRACE": str(self.here / "trace"), "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)

    def drive(self, slots: int = 2, how: str = "cold", **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(slots, how, **options)
        output, errors = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def run_by_hand(self, name: str, *options: str) -> None:
        """Run a stage without the driver, with its options and more."""
        given = [
            "--config",
            str(self.here / f"{name}.yaml"),
            "--output",
            str(self.here / "run" / name),
            "--reads",
            "[]",
        ]
        environment = os.environ | {"TRACE": str(self.here / "trace"), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, str(self.here / "fake.py"), *given, *options], env=environment, check=True)

    def traced(self, word: str = "start") -> list[str]:
        """Names of the stages in the order in which they started (or ended)."""
        return [line.split()[1] for line in self._trace() if line.startswith(word)]

    def times(self) -> Mapping[tuple[str, str], float]:
        return {(line.split()[0], line.split()[1]): float(line.split()[2]) for line in self._trace()}

    def _trace(self) -> list[str]:
        trace = self.here / "trace"
        return trace.read_text().splitlines() if trace.exists() else []

    def wait_for(self, word: str, name: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while name not in self.traced(word):
            assert time.monotonic() < deadline, f"{name} did not {word}"
            time.sleep(0.01)

    def results(self) -> dict[str, str]:
        """Every stage's result."""
        run = self.here / "run"
        return {str(path.relative_to(run)): path.read_text() for path in sorted(run.rglob("out.txt"))}

    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.here / "run" / "ledger.jsonl").read_text().splitlines()]

    def alive(self) -> list[int]:
        """Processes of this run that live."""
        from rlhf.lifetime import marked_processes

        return marked_processes(self.here / "run")

    def wait_until_dead(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < deadline, f"still alive: {self.alive()}"
            time.sleep(0.02)


@pytest.fixture
def fake_run(tmp_path: Path) -> Iterator[FakeRun]:
    (tmp_path / "fake.py").write_text(RECIPE)
    (tmp_path / "drive.py").write_text(DRIVER)
    run = FakeRun(tmp_path)
    yield run
    for pid in run.alive():
        os.kill(pid, 9)


@pytest.fixture
def diamond(fake_run: FakeRun) -> FakeRun:
    """a -> b, c -> d."""
    fake_run.add("a", text="A")
    fake_run.add("b", "a", text="B", seconds=0.4)
    fake_run.add("c", "a", text="C", seconds=0.4)
    fake_run.add("d", "b", "c", text="D")
    return fake_run
