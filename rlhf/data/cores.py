"""Work on many rows by all cores of this machine. Light."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, TypeVar

from rlhf.lifetime import die_with

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
TOKENIZERS_THREADS = "TOKENIZERS_PARALLELISM"


def chunks_of(rows: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Lists of `size` rows; the last one may be shorter."""
    left = iter(rows)
    while chunk := list(islice(left, size)):
        yield chunk


def on_all_cores(work: Callable[[Chunk], Result], chunks: Iterable[Chunk]) -> Iterator[Result]:
    """`work` on each chunk, in their order. Where there are several chunks, each core has a process of its own for it.

    The chunks are read as they are worked on, two ahead of each process, so that neither they nor the results need fit
    into memory. The processes are forked: they have all that `work` holds, and chunks and results alone are sent. So it
    is called before this process has threads of its own at work, or a GPU. An exception that `work` raises is raised
    here, and nothing is left running, also where this process is killed.
    """
    left = iter(chunks)
    first = list(islice(left, 2))
    if len(first) < 2 or (cores := usable_cores()) < 2:
        yield from map(work, chain(first, left))
        return
    with (
        _tokenizers_on_one_thread(),
        ProcessPoolExecutor(cores, get_context("fork"), initializer=_begin, initargs=(os.getpid(), work)) as pool,
    ):
        under_way: deque[Future[Any]] = deque()
        try:
            for chunk in chain(first, left):
                under_way.append(pool.submit(_work, chunk))
                if len(under_way) > 2 * cores:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Of this machine, those that this process may use; 1 where it cannot fork safely, as on a Mac."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


_own_work: Callable[[Any], Any]


def _begin(parent: int, work: Callable[[Any], Any]) -> None:
    """In a new process: Ctrl-C is its parent's to answer, and it ends when that one does."""
    global _own_work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (prepare := die_with(parent)) is not None:
        prepare()
    _own_work = work


def _work(chunk: Any) -> Any:
    return _own_work(chunk)


@contextmanager
def _tokenizers_on_one_thread() -> Iterator[None]:
    """Each process has a core: a tokenizer's own threads would be too many, and would be said to be in each of them."""
    before = os.environ.get(TOKENIZERS_THREADS)
    os.environ[TOKENIZERS_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TOKENIZERS_THREADS]
        else:
            os.environ[TOKENIZERS_THREADS] = before
