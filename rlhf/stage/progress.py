"""The bar over work that may take long; in a log, lines."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

from tqdm import tqdm

from rlhf.terminal import is_quiet

Row = TypeVar("Row")
_times: ContextVar[float] = ContextVar("times", default=1.0)

SECONDS_UNSEEN = 5.0
"""Work that is done by then shows no bar."""
LINE_UP = "\x1b[A"
"""With which tqdm goes back from a bar below another one."""
SECONDS_A_LINE = 60.0
"""Where stderr is no terminal: how often a line is written, and work that is done by then writes none."""
BAR_LINE = re.compile(r"[^:]+: \S+ \w+ in [\d:]+, [\d:?]+ to go.*")
"""Such a line."""


def progress_bar(total: int | None, what: str, unit: str, *, done: int = 0, training: bool = False) -> tqdm:
    """Shown on one process a machine while it runs; `update(n)` counts. Off a terminal, a plain line a minute.

    None is shown where it is to be quiet (`be_quiet`).

    Args:
        done: of the total, before this process began.
        training: it is shown from the beginning, and its last state stays.
    """
    quiet = is_quiet() or os.environ.get("LOCAL_RANK", "0") != "0"
    times = _times.get()
    of = "" if total is None else "/{total:.0f}"
    if sys.stderr.isatty():
        return tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            disable=quiet,
            delay=0 if training else SECONDS_UNSEEN,
            mininterval=1.0,
            leave=training,
            unit_scale=times != 1 and times,
            bar_format=None if total is None else "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}{postfix}]",
        )
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        file=_Lines(sys.stderr),
        disable=quiet,
        delay=0 if training else SECONDS_A_LINE,
        mininterval=SECONDS_A_LINE,
        miniters=1,
        leave=training,
        unit_scale=times != 1 and times,
        bar_format=f"{what}: {{n:.0f}}{of} {unit}s in {{elapsed}}, {{remaining}} to go{{postfix}}",
    )


@contextmanager
def shared_work(part: int, whole: int) -> Iterator[None]:
    """Bars that are opened inside count the `whole` of what all processes do, by the `part` that this one does."""
    before = _times.set(_times.get() * whole / part) if part else None
    try:
        yield
    finally:
        if before is not None:
            _times.reset(before)


def counted(rows: Iterable[Row], what: str) -> Iterator[Row]:
    """Rows of which nobody knows how many there are, with a bar while they are read."""
    with progress_bar(None, what, "row") as progress:
        for row in rows:
            progress.update()
            yield row


class _Lines:
    """A stream for tqdm: what it would draw over the line before is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.replace(LINE_UP, "").strip():
            self.stream.write(line + "\n")

    def flush(self) -> None:
        self.stream.flush()
