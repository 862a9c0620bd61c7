"""What a running stage says in its log: what it waits for, and how far it is."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rlhf.stage.progress import BAR_LINE
from rlhf.stage.waiting import WAITS


class LogWatch:
    """Reads what a stage writes, as it comes.

    Args:
        log: file of its output.
        start: where in it the stage's own output begins, bytes.
    """

    def __init__(self, log: Path, start: int) -> None:
        self.newest = ""
        """The newest line in which the stage says what it waits for, or how far it is; empty: none yet."""
        self.waits = False
        """Whether it has said that it waits."""
        self._log, self._read = log, start

    def begins_to_wait(self) -> bool:
        """Read on; whether the stage has said for the first time that it waits."""
        waited = self.waits
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == self._read:
                return False
            with self._log.open("rb") as stream:
                stream.seek(self._read)
                whole, newline, _ = stream.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.decode("utf-8", "replace").splitlines():
                if line.startswith(WAITS) or BAR_LINE.fullmatch(line):
                    self.newest = line
                    self.waits |= line.startswith(WAITS)
        return self.waits and not waited
