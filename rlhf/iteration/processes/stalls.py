"""Whether a running stage still gets on: something new in its log, or in the folder that it writes into."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

LOOKS_A_LIMIT = 20


class StallWatch:
    """Watches what one stage writes. Compares states, not clocks: those of a file server may differ.

    Args:
        log: file of its output.
        folder: that it writes into, there or not yet.
        limit: seconds without anything new after which it counts as standing still; 0: never.
    """

    def __init__(self, log: Path, folder: Path, limit: float) -> None:
        self.log, self.folder, self.limit = log, folder, limit
        self._state = self._look()
        self._changed = self._looked = time.monotonic()
        self._told = False

    def begins(self) -> bool:
        """Whether it has come to stand still since the last call; true once, and again after it went on."""
        now = time.monotonic()
        if not self.limit or now - self._looked < self.limit / LOOKS_A_LIMIT:
            return False
        self._looked = now
        if (state := self._look()) != self._state:
            self._state, self._changed, self._told = state, now, False
        stands = now - self._changed >= self.limit
        begins, self._told = stands and not self._told, stands
        return begins

    def _look(self) -> tuple[int, int, int]:
        """Size of the log; number of files, and the newest time of one."""
        size = newest = count = 0
        with contextlib.suppress(OSError):
            size = self.log.stat().st_size
        for root, _, files in os.walk(self.folder):
            for file in files:
                count += 1
                with contextlib.suppress(OSError):
                    newest = max(newest, os.stat(os.path.join(root, file)).st_mtime_ns)
        return size, count, newest
