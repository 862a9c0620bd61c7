"""Runs the stages of a plan as processes, side by side where their inputs allow, and goes on where a kill left off.

Departs from a make file in two ways: what a stage is made of is compared by content, not by time; and a stage whose
result came out the same as before does not make its dependents run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf.errors import InputError
from rlhf.iteration.decision import decide, input_digests, stage_key
from rlhf.iteration.ledger import Ledger, Record, output_digest, read_stage_file, suspicious_lines
from rlhf.iteration.lifetime import end_leftovers
from rlhf.iteration.plan import RECIPES, PlannedStage, dependencies, dependents_depth
from rlhf.iteration.processes import StageProcess, command_of, extra_environment, has_gpu, stop
from rlhf.iteration.warm import WarmStart
from rlhf.stage import digest

POLL_SECONDS = 0.05
LOCK = ".lock"
ERROR_LINE = re.compile(r"(?:\[rank\d+\]:\s*)?(error: .*|[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)")
LAUNCHER_LINE = re.compile(r"torch\.distributed\.elastic|subprocess\.CalledProcessError")


class StageFailed(Exception):
    """A stage ended without its folder; the message says what the user needs to go on."""


@dataclass
class Progress:
    """Lines on the terminal: one when a stage starts, one when it ends, and on a real terminal a live one below."""

    total: int
    begun: float = field(default_factory=time.monotonic)
    done: int = 0
    _live: str = ""

    def say(self, stage: str, text: str) -> None:
        """A lasting line."""
        self._clear()
        print(f"[{_clock(time.monotonic() - self.begun)}] {self.done:>2}/{self.total}  {stage:<24} {text}", flush=True)

    def tick(self, running: Sequence[StageProcess]) -> None:
        """Redraw the live line."""
        if not sys.stdout.isatty():
            return
        parts = [f"{process.stage.name} {_clock(process.seconds)}" for process in running]
        text = f"[{_clock(time.monotonic() - self.begun)}] {self.done:>2}/{self.total}  … {', '.join(parts)}"
        text = text[: shutil.get_terminal_size().columns - 1]
        if text != self._live:
            self._clear()
            print(text, end="", flush=True)
            self._live = text

    def _clear(self) -> None:
        if self._live:
            print("\r\033[K", end="")
            self._live = ""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Driver:
    """Runs one plan in one run folder.

    Args:
        stages: in an order in which they could run one after another.
        run: the run's folder.
        slots: processes at once.
        recipes: folder of the recipes.
        warm: fork the stages after the first from one process that has torch imported; None: where that works.
    """

    def __init__(
        self,
        stages: Sequence[PlannedStage],
        run: Path,
        slots: int = 2,
        recipes: Path = RECIPES,
        warm: bool | None = None,
    ) -> None:
        self.stages = list(stages)
        self.run = run
        self.slots = slots
        self.recipes = recipes
        self.may_warm = warm if warm is not None else sys.platform == "linux" and not has_gpu()
        self.warm: WarmStart | None = None
        self.needs = dependencies(self.stages)
        depth = dependents_depth(self.stages)
        self.waiting = sorted(self.stages, key=lambda stage: -depth[stage.name])
        self.running: list[StageProcess] = []
        self.digests: dict[str, str] = {}
        self.keys: dict[str, Record] = {}
        self.progress = Progress(len(self.stages))

    def execute(self, begin: Callable[[], None] | None = None) -> None:
        """Run what has to run; `begin` is called first, once no other driver can be working in the run's folder.

        Raises StageFailed (the other stages are stopped first), InputError, KeyboardInterrupt (Ctrl-C, SIGTERM).
        """
        with _only_driver(self.run) as last_alive, _terminate_as_interrupt():
            if begin is not None:
                begin()
            end_leftovers(self.run)
            self.ledger = Ledger(self.run / "ledger.jsonl")
            self.ledger.close_killed(last_alive)
            self.ledger.append("begun", pid=os.getpid(), stages=len(self.stages), slots=self.slots)
            try:
                while self.waiting or self.running:
                    self._start_what_can()
                    self._look_after_running()
            except BaseException as error:
                self._stop_all(error)
                raise
            finally:
                if self.warm is not None:
                    self.warm.close()
                self.ledger.append("ended", finished=self.progress.done, stages=len(self.stages))

    def _start_what_can(self) -> None:
        """Start ready stages, those that most others wait for first, until one does not fit beside the running ones."""
        for stage in list(self.waiting):
            if any(name not in self.digests for name in self.needs[stage.name]):
                continue
            if stage.name not in self.keys:
                self.keys[stage.name] = stage_key(stage, self.run, input_digests(stage, self.stages, self.digests))
            decision = decide(stage, self.keys[stage.name], self.ledger.last(stage.name))
            if decision.action == "run":
                busy = sum(process.stage.processes for process in self.running)
                if busy and busy + stage.processes > self.slots:
                    return
                self._start(stage, decision.reason)
            elif decision.action == "adopt":
                self._finished(stage, (read_stage_file(stage.output) or {})["seconds"], None, "finished earlier")
            else:
                last: Any = self.ledger.last(stage.name)
                self.digests[stage.name] = last["output"]
                self.progress.done += 1
                self.ledger.append("skipped", stage.name)
                self.progress.say(stage.name, f"finished earlier, in {_clock(last['seconds'])}")
            self.waiting.remove(stage)

    def _start(self, stage: PlannedStage, reason: str) -> None:
        if stage.output.exists():  # out of its place in one move: a kill leaves no half of a finished stage
            partial = stage.output.with_name(stage.output.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            os.replace(stage.output, partial)
            shutil.rmtree(partial)
            reason += "; its old folder is removed"
        make_links(stage)
        command = command_of(stage, self.recipes)
        self.ledger.append("started", stage.name, key=self.keys[stage.name], command=command, reason=reason)
        self.running.append(StageProcess(stage, command, self._log_of(stage), self.run, self.warm))
        if self.may_warm and self.warm is None:
            self.warm = WarmStart(self.run, extra_environment())
        self.progress.say(stage.name, "started" + (f" again: {reason}" if reason else ""))

    def _look_after_running(self) -> None:
        """Wait a moment; take in the stages that ended."""
        if not self.running:
            return
        time.sleep(POLL_SECONDS)
        os.utime(self.run / LOCK)  # a sign of life: how long a driver ran that is killed here
        self.progress.tick(self.running)
        for process in list(self.running):
            status = process.poll()
            if status is None:
                continue
            self.running.remove(process)
            if status == 0 and read_stage_file(process.stage.output) is not None:
                self._finished(
                    process.stage, process.seconds, process.peak_memory_mb, "done in " + _clock(process.seconds)
                )
            else:
                process.signal_group(signal.SIGKILL)
                raise StageFailed(self._failed(process, status))

    def _finished(self, stage: PlannedStage, seconds: float, memory: float | None, text: str) -> None:
        made = output_digest(stage.output)
        self.digests[stage.name] = made
        self.progress.done += 1
        self.ledger.append(
            "finished",
            stage.name,
            key=self.keys[stage.name],
            output=made,
            stage_file=digest(stage.output / "stage.json"),
            seconds=round(seconds, 3),
            peak_memory_mb=memory,
            command=command_of(stage, self.recipes),
        )
        self.progress.say(stage.name, text)
        for sentence in suspicious_lines(stage.output):
            self.progress.say(stage.name, f"suspicious: {sentence}")

    def _failed(self, process: StageProcess, status: int) -> str:
        """Record a failure; returns what the user needs: the last error line, the log, the command."""
        stage = process.stage
        how = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
        line = last_error_line(process.log, process.log_start) or (
            how if status else "it ended without writing its folder"
        )
        self.ledger.append("failed", stage.name, key=self.keys[stage.name], error=line, status=status)
        self.progress.say(stage.name, f"FAILED after {_clock(process.seconds)}, {how}")
        return (
            f"{stage.name}: {line}\n  log:     {process.log}\n"
            f"  by hand: {shlex.join(command_of(stage, self.recipes))}\nThe same command as before goes on from here."
        )

    def _stop_all(self, why: BaseException) -> None:
        stop(self.running)
        for process in self.running:
            name = process.stage.name
            self.ledger.append("failed", name, key=self.keys[name], error=f"stopped: {type(why).__name__}", status=None)
            self.progress.say(name, "stopped")
        self.running = []

    def _log_of(self, stage: PlannedStage) -> Path:
        return self.run / "logs" / f"{stage.name}.log"


def make_links(stage: PlannedStage) -> None:
    """The stage's links, alone in their folders: what an earlier plan linked there is no input of this one."""
    for folder in {link.parent for link, _ in stage.links}:
        shutil.rmtree(folder, ignore_errors=True)
    for link, target in stage.links:
        make_link(link, target)


def make_link(link: Path, target: Path) -> None:
    """Hard link to a file, replacing what was there; a copy where the file system has no links."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError:
        shutil.copyfile(target, link)


def last_error_line(log: Path, start: int = 0) -> str:
    """The last line of the log after byte `start` that names an error, else the last line; "" where there is none."""
    with log.open("rb") as stream:
        stream.seek(start)
        text = stream.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip() and not LAUNCHER_LINE.match(line)]
    errors = [found.group(1) for line in lines if (found := ERROR_LINE.match(line))]
    return (errors or lines or [""])[-1].removeprefix("error: ")[:500]


@contextlib.contextmanager
def _only_driver(run: Path) -> Iterator[float]:
    """Hold the run's lock; gives the last sign of life of the driver before; InputError where another one holds it."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"run: another driver is working in {run}; wait for it or name another --run") from None
        yield (run / LOCK).stat().st_mtime


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP stop the run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
