"""People: their page keeps their judgements in the store; a stage that asks them waits there."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import PEOPLE, Progress, Store
from rlhf.paths import rlhf_command
from rlhf.stage.waiting import say_waiting

SAY_SECONDS = 60.0


class People:
    """Waits until the people of `rlhf annotate` have judged a batch, or until a deadline.

    Args:
        store: the file that the page keeps judgements in.
        batch: the batch that is waited for.
        hours: from the first start on; then the batch is closed as it is. None: until it is complete.
        poll_seconds: between two looks at the store.
        clock, sleep: seconds now, and how to wait.
    """

    name = "people"
    asked = PEOPLE

    def __init__(
        self,
        store: Path,
        batch: str,
        hours: float | None = None,
        poll_seconds: float = 2.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path, self._batch, self._hours, self._poll = store, batch, hours, poll_seconds
        self._clock, self._sleep = clock, sleep

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        """Wait for the batch, whatever its `pairs`; yields nothing, for the page has kept every judgement already, and
        people may still take one back.

        Says on stderr where people are waited for, and every minute how far they are (`rlhf.stage.waiting`).
        """
        with Store(self._path) as store:
            start = float(store.setting(f"asked since {self._batch}", lambda: str(self._clock())))
            said_at = -math.inf
            while (progress := store.progress(self._batch)).complete < progress.pairs:
                if self._hours is not None and self._clock() >= start + 3600 * self._hours:
                    left = store.close_batch(self._batch)
                    print(
                        f"the time for {self._batch} is over: {left} pairs stay unjudged", file=sys.stderr, flush=True
                    )
                    return
                if self._clock() >= said_at + SAY_SECONDS:
                    said_at = self._clock()
                    say_waiting(people_words(self._batch, progress, self._path) + self._deadline(start))
                self._sleep(self._poll)
        yield from ()

    def _deadline(self, start: float) -> str:
        if self._hours is None:
            return ""
        return f", within {(start + 3600 * self._hours - self._clock()) / 3600:.1f} hours"


def people_words(batch: str, progress: Progress, path: Path) -> str:
    """Whom a batch waits for, how far they are, and where they give their judgements."""
    return f"people: {progress.kept} of {progress.wanted} judgements of {batch}; they give them with: {_page(path)}"


def asked_words(batch: str, path: Path) -> str:
    """The same of a stage that may not have come to its batch yet, or not made its store `path`."""
    if path.exists():
        with Store(path) as store:
            if batch in store.batches(people=True):
                return f"waits for {people_words(batch, store.progress(batch), path)}"
    return f"will wait for people, who judge with: {_page(path)}"


def _page(path: Path) -> str:
    return f"{rlhf_command()} annotate {shlex.quote(str(path.parent if path.name == 'labels.sqlite' else path))}"
