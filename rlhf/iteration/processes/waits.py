"""What a running stage waits for, as it says in its log (`rlhf.stage.waiting`)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rlhf.stage.waiting import WAITS


class WaitWatch:
    """Reads what a stage writes, as it comes.

    Args:
        log: file of its output.
        start: where in it the stage's own output begins, bytes.
    """

    def __init__(self, log: Path, start: int) -> None:
        self.newest = ""
        """The newest line of the stage in which it says what it waits for; empty: none yet."""
        self._log, self._read = log, start

    def begins(self) -> bool:
        """Whether the stage has said for the first time that it waits."""
        before = self.newest
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == self._read:
                return False
            with self._log.open("rb") as stream:
                stream.seek(self._read)
                whole, newline, _ = stream.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.decode("utf-8", "replace").splitlines():
                if line.startswith(WAITS):
                    self.newest = line
        return bool(self.newest and not before)
