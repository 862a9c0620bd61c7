"""Runs the stages of a plan as processes, side by side where their inputs allow, and goes on where a kill left off.

Departs from a make file in two ways: what a stage is made of is compared by content, not by time; and a stage whose
result came out the same as before does not make its dependents run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf.errors import InputError
from rlhf.iteration.decision import Decision, decide, input_digests, not_made, read_inputs, stage_key, wanted_again
from rlhf.iteration.disk import folder_bytes, in_words, require_room
from rlhf.iteration.hours.forecast import clock
from rlhf.iteration.keeping import Keep, lacking, removable, removed_parts
from rlhf.iteration.ledger import LOCK, Ledger, Record, output_digest, suspicious_lines
from rlhf.iteration.links import make_links
from rlhf.iteration.plan import RECIPES, PlannedStage, dependencies, start_order
from rlhf.iteration.processes.failures import describe_failure, is_users_mistake, out_of_memory_kills, was_killed
from rlhf.iteration.processes.gpus import Dealer
from rlhf.iteration.processes.log_watch import LogWatch
from rlhf.iteration.processes.retries import Retries
from rlhf.iteration.processes.stage_process import StageProcess, by_hand, command_of, extra_environment, stop
from rlhf.iteration.processes.stalls import StallWatch
from rlhf.iteration.processes.warm import WarmStart
from rlhf.iteration.progress import Progress, elapsed
from rlhf.launch import visible_gpus
from rlhf.lifetime import end_leftovers
from rlhf.stage import ORIGIN_FILE, STAGE_FILE, digest, read_stage_file, remove_folder, require_ours
from rlhf.stage.digests import FileDigests, Signature, signature_of
from rlhf.terminal import GREEN, RED

POLL_SECONDS = 0.05


class StageFailed(Exception):
    """A stage ended without its folder; the message says what the user needs to go on."""


class Driver:
    """Runs one plan in one run folder.

    Args:
        stages: in an order in which they could run one after another.
        run: the run's folder.
        slots: processes at once.
        recipes: folder of the recipes.
        warm: fork the stages after the first from one process that has torch imported; None: where that works.
        stalled_minutes: a stage whose log and folder have nothing new for so long is said to stand still; 0: never.
        end_stalled: end such a stage, and with it the run.
        gpus: names of this machine's; None: those that are visible.
        keep: which checkpoints stay, see `rlhf.iteration.keeping`.
        left: the ledger's records -> seconds that the rest takes, None where that is not known.
        quiet: say nothing but warnings.
    """

    def __init__(
        self,
        stages: Sequence[PlannedStage],
        run: Path,
        slots: int = 2,
        recipes: Path = RECIPES,
        warm: bool | None = None,
        stalled_minutes: float = 0.0,
        end_stalled: bool = False,
        gpus: Sequence[str] | None = None,
        keep: Keep = "all",
        left: Callable[[Sequence[Record]], float | None] = lambda records: None,
        quiet: bool = False,
    ) -> None:
        self.left = left
        self.stages = list(stages)
        self.run = run
        self.slots = slots
        self.recipes = recipes
        self.dealer = Dealer(visible_gpus() if gpus is None else gpus)
        self.may_warm = warm if warm is not None else sys.platform == "linux" and not self.dealer.gpus
        self.warm: WarmStart | None = None
        self.needs = dependencies(self.stages)
        self.waiting = start_order(self.stages, slots)
        self.running: list[StageProcess] = []
        self.stalled_minutes, self.end_stalled = stalled_minutes, end_stalled
        self.watches: dict[str, StallWatch] = {}
        self.logs: dict[str, LogWatch] = {}
        self.retries = Retries()
        self.keep: Keep = keep
        self.wanted: dict[str, Decision] = {}
        self.made: dict[str, Mapping[str, str]] = {}
        self.seen: dict[str, dict[Path, Signature]] = {}
        self.keys: dict[str, Record] = {}
        self.progress = Progress(len(self.stages), quiet)

    def execute(self, begin: Callable[[], None] | None = None) -> None:
        """Run what has to run; `begin` is called first, once no other driver can be working in the run's folder.

        Raises StageFailed (the other stages are stopped first), InputError, KeyboardInterrupt (Ctrl-C, SIGTERM).
        """
        for stage in self.stages:
            self.dealer.check(stage)
        with _only_driver(self.run) as last_alive, _terminate_as_interrupt():
            if begin is not None:
                begin()
            end_leftovers(self.run)
            self.ledger = Ledger(self.run / "ledger.jsonl")
            self.ledger.close_killed(last_alive)
            self.ledger.append("begun", pid=os.getpid(), stages=len(self.stages), slots=self.slots)
            self.digests = FileDigests(self.run)
            try:
                to_run = read_inputs(self.stages, self.run, self.digests)
                if to_run:
                    self.progress.say("disk", require_room(self.stages, to_run, self.run, self.keep))
                while self.waiting or self.running:
                    done = self.progress.done
                    self._start_what_can()
                    self._look_after_running()
                    if self.progress.done != done:
                        self._remove_what_nobody_reads()
            except BaseException as error:
                self._stop_all(error)
                raise
            finally:
                if self.warm is not None:
                    self.warm.close()
                self.digests.save()
                self.ledger.append("ended", finished=self.progress.done, stages=len(self.stages))

    def _start_what_can(self) -> None:
        """Start ready stages, those that most others wait for first, until one does not fit beside the running ones.

        One that waits for GPUs is overtaken by those that take none.
        """
        gpus_are_waited_for = False
        for stage in list(self.waiting):
            if any(name not in self.made for name in self.needs[stage.name]) or self.retries.waits(stage.name):
                continue
            removed = removed_parts(self.ledger.records)
            if stage.name not in self.keys:
                inputs = input_digests(stage, self.stages, self.made, self.digests, removed)
                self.keys[stage.name] = stage_key(stage, self.run, inputs)
            decision = self.wanted.get(stage.name) or decide(
                stage,
                self.keys[stage.name],
                self.ledger.last(stage.name),
                self.digests,
                removed.get(stage.name, ()),
            )
            if decision.action == "run":
                if lost := lacking(stage, self.stages, removed):
                    self._make_again(lost, stage)
                    continue
                busy = sum(process.stage.processes for process in self.running)
                if busy and busy + stage.processes > self.slots:
                    return
                gpus = None if gpus_are_waited_for and self.dealer.count(stage) else self.dealer.take(stage)
                if gpus is None:
                    gpus_are_waited_for = True
                    continue
                self._start(stage, decision.reason, gpus)
            elif decision.action == "adopt":
                record = read_stage_file(stage.output)
                assert record is not None, "that is why it is taken over"
                self._finished(stage, record["seconds"], None, "finished earlier")
            else:
                last: Any = self.ledger.last(stage.name)
                self.made[stage.name] = last.get("files", {})
                self.progress.done += 1
                self.ledger.append("skipped", stage.name)
                self.progress.say(stage.name, f"finished earlier, in {elapsed(last.get('seconds', 0))}")
            self.waiting.remove(stage)

    def _make_again(self, lost: Sequence[str], reader: PlannedStage) -> None:
        """Let stages whose checkpoints were removed run before the one that reads them, once nobody reads the rest."""
        for name in lost:
            if name in self.made and not any(name in self.needs[process.stage.name] for process in self.running):
                del self.made[name]
                self.progress.done -= 1
                self.wanted[name] = wanted_again(reader.name)
                self.waiting.insert(0, next(stage for stage in self.stages if stage.name == name))

    def _remove_what_nobody_reads(self) -> None:
        for stage, name in removable(self.stages, self.made, self.keep):
            path = stage.output / name
            size = folder_bytes(path)
            self.ledger.append("removed", stage.name, names=[name], bytes=size, keep=self.keep)
            remove_folder(path)
            self.progress.say(stage.name, f"{name} removed, {in_words(size)} (keep: {self.keep})")

    def _start(self, stage: PlannedStage, reason: str, gpus: Sequence[str]) -> None:
        partial = stage.output.with_name(stage.output.name + ".partial")
        require_ours(partial)
        if os.path.lexists(stage.output):  # out of its place in one move: a kill leaves no half of a finished stage
            remove_folder(stage.output)
            reason += "; its old folder is removed"
        make_links(stage)
        command = command_of(stage, self.recipes, gpus if self.dealer.deals_to(stage) else None)
        self.ledger.append("started", stage.name, key=self.keys[stage.name], command=command, reason=reason)
        log = self._log_of(stage)
        self.seen[stage.name] = {path: signature_of(path) for path in stage.inputs}
        self.digests.save()  # for the stage, which reads none of its inputs again that is known
        self.running.append(StageProcess(stage, command, log, self.run, self.warm, gpus))
        self.watches[stage.name] = StallWatch(log, partial, 60 * self.stalled_minutes)
        self.logs[stage.name] = LogWatch(log, self.running[-1].log_start)
        if self.may_warm and self.warm is None:
            self.warm = WarmStart(self.run, extra_environment())
        self.progress.say(stage.name, "started" + (f" again: {reason}" if reason else ""))

    def _look_after_running(self) -> None:
        """Wait a moment; take in the stages that ended."""
        if not self.running and not self.retries.pending:
            return
        time.sleep(POLL_SECONDS)
        os.utime(self.run / LOCK)  # a sign of life: how long a driver ran that is killed here
        for process in list(self.running):
            log = self.logs[process.stage.name]
            if log.begins_to_wait():
                self.progress.warn(process.stage.name, log.newest)
            if self.progress.is_due(process):
                self.progress.say(process.stage.name, f"{log.newest or 'at work'}{self._left(' of the run')}")
        self.progress.tick(self.running, {name: log.newest for name, log in self.logs.items()})
        for process in list(self.running):
            status = process.poll()
            if status is None:
                if self.watches[process.stage.name].begins():
                    self._stands_still(process)
                continue
            self._ended(process)
            whole = status == 0 and read_stage_file(process.stage.output) is not None
            if whole and (missing := not_made(process.stage)):
                self._retry_or_give_up(process, f"it did not write {missing}, which `makes` in the plan names", status)
            elif whole:
                self._finished(
                    process.stage, process.seconds, process.peak_memory_mb, "done in " + elapsed(process.seconds)
                )
            else:
                process.signal_group(signal.SIGKILL)
                self._failed(process, status)

    def _ended(self, process: StageProcess) -> None:
        self.running.remove(process)
        self.dealer.give_back(process.gpus)

    def _finished(self, stage: PlannedStage, seconds: float, memory: float | None, text: str) -> None:
        self.made[stage.name] = files = self.digests.of_folder(stage.output)
        self.progress.done += 1
        self.ledger.append(
            "finished",
            stage.name,
            key=self.keys[stage.name],
            output=output_digest(files),
            files=files,
            stage_file=digest(stage.output / STAGE_FILE),
            seconds=round(seconds, 3),
            peak_memory_mb=memory,
            command=command_of(stage, self.recipes),
        )
        self.retries.pending.pop(stage.name, None)
        self.wanted.pop(stage.name, None)
        seen = self.seen.pop(stage.name, {})
        record = read_stage_file(stage.output)
        for entry in (record["inputs"] if record is not None else {}).values():
            path = Path(entry["path"])
            if path in seen and signature_of(path) == seen[path]:
                self.digests.learn(path, entry["digest"], seen[path])
        for aside in stage.output.parent.glob(f"{stage.output.name}.*.done"):  # of a stage killed while it removed it
            if (aside / ORIGIN_FILE).exists():
                remove_folder(aside)
        self.progress.say(stage.name, text + self._left(), GREEN)
        for sentence in suspicious_lines(stage.output):
            self.progress.warn(stage.name, f"suspicious: {sentence}")

    def _left(self, of: str = "") -> str:
        """What the rest takes, in words; empty where that is not known, or nothing."""
        left = self.left(self.ledger.records)
        return f", about {clock(left)}{of} to go" if left else ""

    def _failed(self, process: StageProcess, status: int) -> None:
        killed = out_of_memory_kills() - process.killed_before
        line = describe_failure(status, process.log, process.log_start, out_of_memory_kills=killed)
        self._retry_or_give_up(process, line, status)

    def _stands_still(self, process: StageProcess) -> None:
        """Say it; where the user wants that, end the stage."""
        line = f"stands still: nothing new in its log or folder for {self.stalled_minutes:g} minutes"
        self.progress.warn(process.stage.name, f"{line}; see {process.log}")
        if self.end_stalled:
            stop([process])
            self._ended(process)
            self._retry_or_give_up(process, f"{line} (end_stalled)", None)

    def _retry_or_give_up(self, process: StageProcess, line: str, status: int | None) -> None:
        """Record a failure; let the stage be started again where its launch allows that and no user's mistake is why.

        Raises StageFailed with what the user needs otherwise: why, the log, the command.
        """
        stage = process.stage
        file = stage.output / STAGE_FILE  # whole, and yet it failed: what it made is not taken for finished
        failed_itself = status is not None and not was_killed(status, process.log, process.log_start)
        written = {"stage_file": digest(file)} if failed_itself and file.is_file() else {}
        self.ledger.append("failed", stage.name, key=self.keys[stage.name], error=line, status=status, **written)
        mistake = status is not None and is_users_mistake(status, process.log, process.log_start)
        seconds = None if mistake else self.retries.next(stage)
        failed = f"FAILED after {elapsed(process.seconds)}"
        if seconds is not None:
            tried = f"{self.retries.tried[stage.name]} of {stage.launch.retries}"
            self.progress.warn(stage.name, f"{failed}: {line}; starts again in {seconds:g} s (retry {tried})")
            self.waiting.insert(0, stage)
            return
        self.progress.warn(stage.name, failed, RED)
        raise StageFailed(
            f"{stage.name}: {line}\n  log:     {process.log}\n  memory:  {process.peak_memory_mb:,.0f} MiB at most\n"
            f"  by hand: {by_hand(stage, self.recipes)}\nThe same command as before goes on from here."
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
