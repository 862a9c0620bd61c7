"""One stage at a time works in a folder: a second one would empty the first one's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import InputError

PATIENCE = 30.0
"""Seconds that a stage waits for one that was ended just now, and still has its folder."""


@contextmanager
def held(partial: Path) -> Iterator[None]:
    """Hold a stage's folder, which is made where it is not there, until the end of the block, or of the process.

    Where a file system knows no locks nothing is held.

    Raises:
        InputError: another process holds it.
    """
    new = not partial.exists()
    partial.mkdir(parents=True, exist_ok=True)
    folder = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(folder, partial)
        if not (partial.exists() and os.path.samestat(os.fstat(folder), partial.stat())):
            raise InputError(
                f"output: another process has finished or moved {partial} meanwhile; look at what is there"
            )
        yield
    except BaseException:
        if new:  # and nothing was written: the stage was refused
            with contextlib.suppress(OSError):
                partial.rmdir()
        raise
    finally:
        os.close(folder)


def _lock(folder: int, partial: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise InputError(
                    f"output: another process is at work in {partial}; let it end, or stop it, or name another --output"
                ) from None
            time.sleep(0.2)
        except OSError:
            return None
