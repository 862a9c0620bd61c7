"""Who is asked about which pair: while an annotator looks at it, it is leased to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.annotation.protocol import Choice, Pair
from rlhf.annotation.scales import PREFERENCE, SCALES, Scale
from rlhf.annotation.store.batches import GOLD, PEOPLE, Batches, pair_of
from rlhf.errors import InputError


@dataclass(frozen=True)
class Shown:
    """A pair as one annotator sees it.

    Args:
        item: the pair's number in the store.
        batch: name of its batch.
        pair: the pair.
        left: the answer to show on the left: drawn from the annotator's name and the pair's id, so it never changes.
        scale: how it may be answered.
    """

    item: int
    batch: str
    pair: Pair
    left: Choice
    scale: Scale = PREFERENCE


class Leases(Batches):
    """The part of a `Store` that gives out pairs."""

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
            yield from (pair_of(text) for _, text in rows)
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
            if number is None and only is None:
                number = self._gold(annotator)
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

    def _gold(self, annotator: str) -> int | None:
        """A pair of GOLD that this annotator has not seen, where one is due after so many judgements of theirs."""
        every = self._sql.execute("SELECT value FROM settings WHERE name = 'gold every'").fetchone()
        if every is None:
            return None
        of_gold = "JOIN items ON items.number = item JOIN batches ON batches.number = batch WHERE asked = ?"
        query = f"SELECT 1 FROM leases {of_gold} AND annotator = ?"
        if self._sql.execute(query, (GOLD, annotator)).fetchone() is not None:
            return None
        query = (
            "SELECT count(*) FROM judgements WHERE annotator = ? AND undone_at IS NULL AND number > ifnull("
            f"(SELECT max(judgements.number) FROM judgements {of_gold} AND annotator = ? AND undone_at IS NULL), 0)"
        )
        if self._sql.execute(query, (annotator, GOLD, annotator)).fetchone()[0] < int(every[0]):
            return None
        query = (
            "SELECT number FROM items WHERE batch IN (SELECT number FROM batches WHERE asked = ?) AND NOT withdrawn"
            " AND NOT EXISTS (SELECT 1 FROM judgements WHERE item = items.number AND annotator = ?"
            " AND undone_at IS NULL) ORDER BY number LIMIT 1"
        )
        row = self._sql.execute(query, (GOLD, annotator)).fetchone()
        return None if row is None else int(row[0])

    def shown(self, item: int, annotator: str) -> Shown:
        """The pair with this number, as this annotator sees it; InputError where there is none."""
        query = "SELECT name, pair, scale FROM items JOIN batches ON batch = batches.number WHERE items.number = ?"
        rows = self._rows(query, item)
        if not rows:
            raise InputError(f"item: {self.path} has no pair of number {item}")
        pair = pair_of(rows[0][1])
        return Shown(item, rows[0][0], pair, left_of(pair.id, annotator), SCALES[rows[0][2]])

    def add_leased(self, batch: str, pair: Pair, annotator: str) -> Shown:
        """Put one more pair into people's batch (made where there is none), wanting one judgement, and lease it.

        A pair whose id is there already stays as it is.
        """
        text = json.dumps(pair.to_dict(), ensure_ascii=False)
        with self._transaction():
            self._sql.execute(
                "INSERT OR IGNORE INTO batches (name, labels, asked, scale) VALUES (?, 1, ?, ?)",
                (batch, PEOPLE, PREFERENCE.name),
            )
            number = self._batch(batch)
            query = "INSERT OR IGNORE INTO items (batch, id, pair, places) VALUES (?, ?, ?, 1)"
            self._sql.execute(query, (number, pair.id, text))
            query = "SELECT number, places FROM items WHERE batch = ? AND id = ?"
            item, places = self._sql.execute(query, (number, pair.id)).fetchone()
            if places > 0:
                self._sql.execute(
                    "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET until = excluded.until",
                    (item, annotator, self._clock() + self._lease_seconds),
                )
        return self.shown(item, annotator)

    def pair_of_id(self, batch: str, id: str) -> Pair | None:
        """The pair of a batch with this id; None where there is no such batch or pair."""
        query = "SELECT pair FROM items JOIN batches ON batch = batches.number WHERE name = ? AND id = ?"
        rows = self._rows(query, batch, id)
        return pair_of(rows[0][0]) if rows else None

    def release(self, annotator: str) -> None:
        """Give back whatever is leased to this annotator, e.g. when they leave."""
        with self._transaction():
            self._sql.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))


def left_of(pair: str, annotator: str) -> Choice:
    """Which answer of a pair this annotator sees on the left: drawn from both names, half of the pairs each."""
    return "a" if hashlib.sha256(f"{pair}\x1f{annotator}".encode()).digest()[0] & 1 else "b"
