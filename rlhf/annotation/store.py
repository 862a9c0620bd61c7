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

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.annotation.protocol import Choice, Judgement, Pair
from rlhf.errors import InputError

VERSION = 1
PEOPLE = "people"
LEASE_SECONDS = 900.0
BUSY_SECONDS = 30.0

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, labels INTEGER NOT NULL, asked TEXT NOT NULL
);
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL REFERENCES batches (number),
    id TEXT NOT NULL,
    pair TEXT NOT NULL,               -- the Pair as JSON
    labels INTEGER NOT NULL DEFAULT 0,
    places INTEGER NOT NULL CHECK (places >= 0),  -- judgements still wanted; the triggers below count
    withdrawn INTEGER NOT NULL DEFAULT 0,
    UNIQUE (batch, id)
);
CREATE INDEX open_items ON items (number) WHERE places > 0 AND NOT withdrawn;
CREATE INDEX counted ON items (batch, withdrawn, places, labels);
CREATE TABLE judgements (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    item INTEGER NOT NULL REFERENCES items (number),
    annotator TEXT NOT NULL,
    choice TEXT, strength TEXT, chosen_safe INTEGER, rejected_safe INTEGER, shown_left TEXT, seconds REAL,
    skipped TEXT NOT NULL,
    kept_at REAL NOT NULL,
    undone_at REAL
);
CREATE UNIQUE INDEX one_judgement ON judgements (item, annotator) WHERE undone_at IS NULL;
CREATE INDEX judgements_of ON judgements (annotator, number) WHERE undone_at IS NULL;
CREATE TABLE leases (
    item INTEGER NOT NULL REFERENCES items (number), annotator TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (item, annotator)
);
CREATE INDEX leases_of ON leases (annotator);
CREATE TRIGGER place_taken AFTER INSERT ON judgements BEGIN
    UPDATE items SET places = places - 1, labels = labels + 1 WHERE number = new.item;
END;
CREATE TRIGGER place_free AFTER UPDATE OF undone_at ON judgements
WHEN old.undone_at IS NULL AND new.undone_at IS NOT NULL BEGIN
    UPDATE items SET places = places + 1, labels = labels - 1 WHERE number = new.item;
END;
"""


class FullError(InputError):
    """The pair has all the judgements it wants; this one came too late and is not kept."""


@dataclass(frozen=True)
class Shown:
    """A pair as one annotator sees it.

    Args:
        item: the pair's number in the store.
        batch: name of its batch.
        pair: the pair.
        left: the answer to show on the left: drawn from the annotator's name and the pair's id, so it never changes.
    """

    item: int
    batch: str
    pair: Pair
    left: Choice


@dataclass(frozen=True)
class Progress:
    """How far a batch (or all of them) is.

    Args:
        pairs: how many there are.
        wanted: judgements wanted in all.
        kept: judgements and skips there are.
        skipped: skips among `kept`.
        complete: pairs with all they want.
    """

    pairs: int
    wanted: int
    kept: int
    skipped: int
    complete: int


@dataclass(frozen=True)
class Counts:
    """Judgements (and skips) wanted and kept in people's batches, those of one annotator, and the newest one's number.

    `newest` is 0 where the annotator has none.
    """

    wanted: int
    kept: int
    mine: int
    newest: int


class Store:
    """A file of pairs and judgements; made where there is none. Threads may share one; processes open one each.

    Args:
        path: the SQLite file (WAL: two more files lie beside it while it is open). Only its owner may read it.
        durable: a judgement also survives a power cut (a few milliseconds each); off, it survives a kill.
        lease_seconds: how long a pair waits for the annotator that it was shown to.
        clock: seconds now.

    Raises:
        InputError: the file is no such store, or one of a newer version.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = False,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self._lease_seconds, self._clock, self._lock = lease_seconds, clock, threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); name another file") from error
        self._sql = sqlite3.connect(self.path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            with self._transaction():
                self._require_schema()
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._sql.execute("PRAGMA foreign_keys = ON")
        except (sqlite3.DatabaseError, InputError) as error:
            self._sql.close()
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: is no store of judgements ({error}); name another file") from error

    def _require_schema(self) -> None:
        version = self._sql.execute("PRAGMA user_version").fetchone()[0]
        tables = self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == VERSION:
            return
        if version or tables:
            raise InputError(f"{self.path}: is no store of judgements of version {VERSION}; name another file")
        for statement in _statements(SCHEMA):
            self._sql.execute(statement)
        self._sql.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._sql.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._sql.execute(query, values).fetchall()

    # batches and their pairs

    def add_batch(self, name: str, pairs: Iterable[Pair], *, labels: int = 1, asked: str = PEOPLE) -> int:
        """Make the batch `name` these pairs; return how many are new to it. They are asked about in this order, new
        ones behind those that were there.

        Again with the same pairs changes nothing. A pair that was in the batch and is not among them is withdrawn: its
        judgements stay in the file, and nobody is asked about it, until a later call names it again. Where others are
        asked than before, the batch begins anew, and what there was is set aside as `<name> #<number>`.

        Args:
            name: of the batch.
            pairs: no id twice.
            labels: judgements that each pair wants.
            asked: who judges it: `PEOPLE`, or a text that says which machine; only people are shown pairs by `lease`.

        Raises:
            InputError: an id twice, an id that another pair of the batch has, no pairs, or `labels` below 1.
        """
        pairs = list(pairs)
        if not name.strip() or not pairs:
            raise InputError(f"batch: needs a name and at least one pair, got {name!r} and {len(pairs)}")
        if labels < 1:
            raise InputError(f"labels: every pair wants at least 1 judgement, got {labels}")
        if len({pair.id for pair in pairs}) < len(pairs):
            seen: set[str] = set()
            twice = next(pair.id for pair in pairs if pair.id in seen or seen.add(pair.id))  # type: ignore[func-returns-value]
            raise InputError(f"id: {twice!r} names two pairs; every pair needs one of its own")
        with self._transaction():
            self._sql.execute(
                "UPDATE batches SET name = name || ' #' || number, asked = 'set aside' WHERE name = ? AND asked != ?",
                (name, asked),
            )
            self._sql.execute(
                "INSERT INTO batches (name, labels, asked) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET labels = excluded.labels",
                (name, labels, asked),
            )
            batch = self._batch(name)
            known = dict(self._sql.execute("SELECT id, pair FROM items WHERE batch = ?", (batch,)).fetchall())
            self._sql.execute("UPDATE items SET withdrawn = 1 WHERE batch = ?", (batch,))
            for pair in pairs:
                text = json.dumps(pair.to_dict(), ensure_ascii=False)
                there = _pair(known.get(pair.id, text))
                if (there.messages, there.a, there.b) != (pair.messages, pair.a, pair.b):
                    raise InputError(f"id: {pair.id!r} is another pair in batch {name!r} of {self.path}; rename one")
                self._sql.execute(
                    "INSERT INTO items (batch, id, pair, places) VALUES (?, ?, ?, ?) ON CONFLICT (batch, id)"
                    " DO UPDATE SET pair = excluded.pair, withdrawn = 0, places = max(0, ? - labels)",
                    (batch, pair.id, text, labels, labels),
                )
        return len({pair.id for pair in pairs} - set(known))

    def _batch(self, name: str) -> int:
        row = self._sql.execute("SELECT number FROM batches WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise InputError(f"batch: {self.path} has no batch {name!r}; it has {', '.join(self.batches()) or 'none'}")
        return int(row[0])

    def batches(self, *, people: bool = False) -> list[str]:
        """Names of the batches, oldest first; of all, or of those that people are asked about."""
        query = "SELECT name FROM batches WHERE asked = ? OR ? ORDER BY number"
        return [name for (name,) in self._rows(query, PEOPLE, not people)]

    def close_batch(self, name: str) -> int:
        """Ask nobody about the batch any more; return how many pairs have no judgement: these are withdrawn."""
        with self._transaction():
            batch = self._batch(name)
            self._sql.execute("UPDATE items SET places = 0 WHERE batch = ? AND labels > 0", (batch,))
            query = "UPDATE items SET withdrawn = 1 WHERE batch = ? AND labels = 0 AND NOT withdrawn"
            return self._sql.execute(query, (batch,)).rowcount

    def pairs(self, batch: str) -> list[Pair]:
        """The pairs of a batch that are not withdrawn, in their order."""
        query = "SELECT pair FROM items WHERE batch = ? AND NOT withdrawn ORDER BY number"
        return [_pair(text) for (text,) in self._rows(query, self._batch(batch))]

    # who judges what

    def unjudged(self, batch: str, annotator: str) -> Iterator[Pair]:
        """The pairs of a batch that want a judgement and have none of this annotator, in their order; for annotators
        that are no people, who take no leases."""
        query = (
            "SELECT number, pair FROM items WHERE batch = ? AND number > ? AND places > 0 AND NOT withdrawn"
            " AND NOT EXISTS (SELECT 1 FROM judgements WHERE item = items.number AND annotator = ?"
            " AND undone_at IS NULL) ORDER BY number LIMIT 256"
        )
        number, last = self._batch(batch), -1
        while rows := self._rows(query, number, last, annotator):
            yield from (_pair(text) for _, text in rows)
            last = rows[-1][0]

    def lease(self, annotator: str, *, after: int | None = None, batch: str | None = None) -> Shown | None:
        """The next pair of people's batches for this annotator, leased to them; None: nothing is left for them now.

        A pair that they hold already comes first, so that a page that is loaded again shows what it showed. `after` is
        the number of a pair in work, which they keep: the next one beside it (for a page that fetches ahead).
        """
        if not annotator.strip():
            raise InputError("annotator: must be a name, got an empty one")
        now, only = self._clock(), None if batch is None else self._batch(batch)
        with self._transaction():
            self._sql.execute("DELETE FROM leases WHERE until <= ?", (now,))
            number = self._held(annotator, after, only)
            if number is None:
                number = self._next(annotator, only)
            if number is None:
                return None
            self._sql.execute(
                "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET until = excluded.until",
                (number, annotator, now + self._lease_seconds),
            )
            if after is not None:  # they are still at work on that one
                self._sql.execute(
                    "UPDATE leases SET until = ? WHERE item = ? AND annotator = ?",
                    (now + self._lease_seconds, after, annotator),
                )
        return self.shown(number, annotator)

    def _held(self, annotator: str, after: int | None, batch: int | None) -> int | None:
        """The first pair that is leased to them; of one that has become full, or is withdrawn, the lease goes."""
        self._sql.execute(
            "DELETE FROM leases WHERE annotator = ? AND EXISTS (SELECT 1 FROM items WHERE number = item AND"
            " (places <= 0 OR withdrawn))",
            (annotator,),
        )
        query = (
            "SELECT item FROM leases JOIN items ON number = item WHERE annotator = ? AND item != ifnull(?, -1)"
            " AND batch = ifnull(?, batch) ORDER BY item LIMIT 1"
        )
        row = self._sql.execute(query, (annotator, after, batch)).fetchone()
        return None if row is None else int(row[0])

    def _next(self, annotator: str, batch: int | None) -> int | None:
        """The first pair with a free place behind the last one that they judged; then from the start."""
        query = (
            "SELECT number FROM items WHERE number > ? AND places > 0 AND NOT withdrawn AND +batch = ifnull(?, batch)"
            " AND +batch IN (SELECT number FROM batches WHERE asked = ?)"
            " AND places > (SELECT count(*) FROM leases WHERE item = items.number AND annotator != ?)"
            " AND NOT EXISTS (SELECT 1 FROM leases WHERE item = items.number AND annotator = ?)"
            " AND NOT EXISTS (SELECT 1 FROM judgements WHERE item = items.number AND annotator = ?"
            " AND undone_at IS NULL) ORDER BY number LIMIT 1"
        )
        last = self._sql.execute(
            "SELECT item FROM judgements WHERE annotator = ? AND undone_at IS NULL ORDER BY number DESC LIMIT 1",
            (annotator,),
        ).fetchone()
        for start in (last[0], -1) if last else (-1,):
            row = self._sql.execute(query, (start, batch, PEOPLE, *(annotator,) * 3)).fetchone()
            if row is not None:
                return int(row[0])
        return None

    def shown(self, item: int, annotator: str) -> Shown:
        """The pair with this number, as this annotator sees it; InputError where there is none."""
        query = "SELECT name, pair FROM items JOIN batches ON batch = batches.number WHERE items.number = ?"
        rows = self._rows(query, item)
        if not rows:
            raise InputError(f"item: {self.path} has no pair of number {item}")
        pair = _pair(rows[0][1])
        return Shown(item, rows[0][0], pair, left_of(pair.id, annotator))

    def release(self, annotator: str) -> None:
        """Give back whatever is leased to this annotator, e.g. when they leave."""
        with self._transaction():
            self._sql.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))

    # judgements

    def keep(self, batch: str, judgement: Judgement) -> bool:
        """Keep a judgement; True where it is new, False where the very same one is there already.

        Raises:
            FullError: the pair has all its judgements; this one is not kept.
            InputError: the annotator has judged this pair otherwise (undo that first), or there is no such pair.
        """
        values = (
            judgement.choice,
            judgement.strength,
            judgement.chosen_safe,
            judgement.rejected_safe,
            judgement.left,
            judgement.skipped,
        )
        with self._transaction():
            query = "SELECT number, places, withdrawn FROM items WHERE batch = ? AND id = ?"
            item = self._sql.execute(query, (self._batch(batch), judgement.pair)).fetchone()
            if item is None:
                raise InputError(f"pair: batch {batch!r} of {self.path} has no pair {judgement.pair!r}")
            number, places, withdrawn = item
            there = self._sql.execute(
                "SELECT choice, strength, chosen_safe, rejected_safe, shown_left, skipped FROM judgements"
                " WHERE item = ? AND annotator = ? AND undone_at IS NULL",
                (number, judgement.annotator),
            ).fetchone()
            if there is not None:
                if tuple(there) == values:
                    return False
                raise InputError(
                    f"pair: {judgement.annotator} has judged {judgement.pair!r} otherwise; take that back first"
                )
            if places <= 0 or withdrawn:
                raise FullError(f"pair: {judgement.pair!r} has all the judgements it wants; this one is not kept")
            self._sql.execute(
                "INSERT INTO judgements (item, annotator, choice, strength, chosen_safe, rejected_safe, shown_left,"
                " skipped, seconds, kept_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (number, judgement.annotator, *values, judgement.seconds, self._clock()),
            )
            self._sql.execute("DELETE FROM leases WHERE item = ? AND annotator = ?", (number, judgement.annotator))
        return True

    def undo(self, annotator: str, *, number: int | None = None) -> tuple[Shown, Judgement] | None:
        """Take back this annotator's newest judgement (or skip), and lease the pair to them again.

        Args:
            number: of the judgement to take back (`counts` has the newest's). Asked again after it was taken back, it
                takes back nothing more: for a page that does not know whether its first request arrived.

        Returns:
            The pair and what was taken back; None: there is nothing. The row stays, with the time.
        """
        now = self._clock()
        with self._transaction():
            row = self._sql.execute(
                f"SELECT judgements.number, item, items.id, {_FIELDS} FROM judgements JOIN items ON items.number = item"
                " WHERE annotator = ? AND NOT withdrawn AND (? IS NOT NULL OR undone_at IS NULL)"
                " AND judgements.number = ifnull(?, judgements.number) ORDER BY judgements.number DESC LIMIT 1",
                (annotator, number, number),
            ).fetchone()
            if row is None:
                return None
            found, item, id, *values = row
            query = "UPDATE judgements SET undone_at = ? WHERE number = ? AND undone_at IS NULL"
            self._sql.execute(query, (now, found))
            query = "SELECT 1 FROM judgements WHERE item = ? AND annotator = ? AND undone_at IS NULL"
            if self._sql.execute(query, (item, annotator)).fetchone() is None:
                self._sql.execute(
                    "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET until = excluded.until",
                    (item, annotator, now + self._lease_seconds),
                )
        return self.shown(item, annotator), _judgement(id, values)

    def judged(
        self, batch: str | None = None, *, annotator: str | None = None, after: int = 0
    ) -> Iterator[tuple[int, str, Pair, Judgement]]:
        """(number, batch, pair, judgement) of every judgement and skip that stands, in the order they were kept.

        Args:
            batch, annotator: of these only.
            after: only those with a greater number, e.g. the last one that was seen.
        """
        query = (
            f"SELECT judgements.number, name, pair, items.id, {_FIELDS} FROM judgements"
            " JOIN items ON items.number = item"
            " JOIN batches ON batches.number = batch WHERE undone_at IS NULL AND NOT withdrawn"
            " AND judgements.number > ? AND name = ifnull(?, name) AND annotator = ifnull(?, annotator)"
            " ORDER BY judgements.number LIMIT 256"
        )
        while rows := self._rows(query, after, batch, annotator):
            for after, name, text, id, *values in rows:
                yield after, name, _pair(text), _judgement(id, values)

    def progress(self, batch: str | None = None, *, annotator: str | None = None) -> Progress:
        """Counts over a batch or all, of all annotators or (kept and skipped) of one."""
        pairs, wanted, complete = self._rows(
            "SELECT count(*), ifnull(sum(places + items.labels), 0), ifnull(sum(places <= 0), 0) FROM items"
            " JOIN batches ON batches.number = batch WHERE NOT withdrawn AND name = ifnull(?, name)",
            batch,
        )[0]
        kept, skipped = self._rows(
            "SELECT count(*), ifnull(sum(choice IS NULL), 0) FROM judgements JOIN items ON items.number = item"
            " JOIN batches ON batches.number = batch WHERE undone_at IS NULL AND NOT withdrawn"
            " AND name = ifnull(?, name) AND annotator = ifnull(?, annotator)",
            batch,
            annotator,
        )[0]
        return Progress(pairs, wanted, kept, skipped, complete)

    def counts(self, annotator: str) -> Counts:
        """People's batches at a glance, from the indexes alone."""
        wanted, kept = self._rows(
            "SELECT ifnull(sum(places + labels), 0), ifnull(sum(labels), 0) FROM items"
            " WHERE NOT withdrawn AND batch IN (SELECT number FROM batches WHERE asked = ?)",
            PEOPLE,
        )[0]
        query = "SELECT count(*), ifnull(max(number), 0) FROM judgements WHERE annotator = ? AND undone_at IS NULL"
        mine, newest = self._rows(query, annotator)[0]
        return Counts(wanted, kept, mine, newest)

    def annotators(self) -> list[str]:
        """Who has judged (and not taken back), by name."""
        return [name for (name,) in self._rows("SELECT DISTINCT annotator FROM judgements ORDER BY annotator")]

    # settings of the file's own

    def setting(self, name: str, default: Callable[[], str]) -> str:
        """A text kept in the file, e.g. the secret of its page; made by `default` the first time it is asked for."""
        with self._transaction():
            self._sql.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, default()))
            return str(self._sql.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()[0])


def left_of(pair: str, annotator: str) -> Choice:
    """Which answer of a pair this annotator sees on the left: drawn from both names, half of the pairs each."""
    return "a" if hashlib.sha256(f"{pair}\x1f{annotator}".encode()).digest()[0] & 1 else "b"


def _pair(text: str) -> Pair:
    row = json.loads(text)
    return Pair(**{**row, "models": tuple(row["models"])})


_FIELDS = "annotator, choice, strength, chosen_safe, rejected_safe, shown_left, seconds, skipped"


def _judgement(pair: str, values: Sequence[Any]) -> Judgement:
    """Of the columns `_FIELDS`."""
    annotator, choice, strength, chosen, rejected, left, seconds, skipped = values
    safe, other = (None if label is None else bool(label) for label in (chosen, rejected))
    return Judgement(pair, annotator, choice, strength, safe, other, left, seconds, skipped)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, triggers whole (`executescript` would end the transaction)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
