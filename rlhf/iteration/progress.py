"""What a driver says on the terminal while it works."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlhf.iteration.processes.stage_process import StageProcess
from rlhf.terminal import YELLOW, painted

FIRST_WORD, LONGEST_SILENCE = 120.0, 3600.0
"""Seconds after which a running stage is first spoken of; then each time it has run twice as long, or an hour more."""


@dataclass
class Progress:
    """Lines on the terminal: one when a stage starts, a few while it runs long, one when it ends; and on a real
    terminal a live one below.

    Args:
        total: stages of the plan.
        quiet: warnings alone.
    """

    total: int
    quiet: bool = False
    begun: float = field(default_factory=time.monotonic)
    done: int = 0
    _live: str = ""
    _due: dict[int, float] = field(default_factory=dict)

    def say(self, stage: str, text: str, colour: str = "") -> None:
        """A lasting line, none where it is to be quiet."""
        if not self.quiet:
            self._line(stage, painted(text, colour, sys.stdout) if colour else text)

    def warn(self, stage: str, text: str, colour: str = YELLOW) -> None:
        """A lasting line that the user needs, whatever was asked for."""
        self._line(stage, painted(text, colour, sys.stdout))

    def _line(self, stage: str, text: str) -> None:
        self._clear()
        print(f"[{elapsed(time.monotonic() - self.begun)}] {self.done:>2}/{self.total}  {stage:<24} {text}", flush=True)

    def is_due(self, process: StageProcess) -> bool:
        """Whether it is time to say how far a running stage is: after 2, 4, 8, ... minutes, at last every hour."""
        if self.quiet or process.seconds < self._due.get(process.pid, FIRST_WORD):
            return False
        self._due[process.pid] = process.seconds + min(process.seconds, LONGEST_SILENCE)
        return True

    def tick(self, running: Sequence[StageProcess], newest: Mapping[str, str]) -> None:
        """Redraw the live line; `newest` is what a stage says it waits for, or how far it is, where it has."""
        if self.quiet or not sys.stdout.isatty():
            return
        parts = [
            f"{process.stage.name} {elapsed(process.seconds)} {newest.get(process.stage.name, '')}".rstrip()
            for process in running
        ]
        text = f"[{elapsed(time.monotonic() - self.begun)}] {self.done:>2}/{self.total}  … {', '.join(parts)}"
        text = text[: shutil.get_terminal_size().columns - 1]
        if text != self._live:
            self._clear()
            print(text, end="", flush=True)
            self._live = text

    def _clear(self) -> None:
        if self._live:
            print("\r\033[K", end="")
            self._live = ""


def elapsed(seconds: float) -> str:
    """Minutes and seconds, as 75:04."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
