"""Where pairs wait for judgements and every judgement is kept: one SQLite file, written by any number of processes.

    with Store("labels.sqlite") as store:
        store.add_batch("v1", pairs, labels=1)
        while (shown := store.lease("ann")) is not None:
            store.keep(shown.batch, Judgement(shown.pair.id, "ann", "a", "better", left=shown.left))

A judgement is in the file when `keep` returns: the process may be killed at any moment, and the same judgement kept
twice is there once. A pair wants a number of judgements; while an annotator looks at it, it is leased, so that no more
annotators look at it than it wants. Nothing is ever deleted: a judgement that was taken back keeps its row, with the
time.
"""

from rlhf.annotation.store.batches import GOLD, PEOPLE
from rlhf.annotation.store.entries import Entry, EntryKind
from rlhf.annotation.store.leases import Shown, left_of
from rlhf.annotation.store.store import Counts, FullError, JudgedError, Progress, Store

__all__ = [
    "GOLD",
    "PEOPLE",
    "Counts",
    "Entry",
    "EntryKind",
    "FullError",
    "JudgedError",
    "Progress",
    "Shown",
    "Store",
    "left_of",
]
