"""The judgements of a store: kept, taken back, counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store.batches import PEOPLE, pair_of
from rlhf.annotation.store.entries import Entries
from rlhf.annotation.store.leases import Leases, Shown
from rlhf.errors import InputError


class FullError(InputError):
    """The pair has all the judgements it wants; this one came too late and is not kept."""


class JudgedError(InputError):
    """The annotator has judged the pair otherwise; this judgement is not kept."""


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


class Store(Leases, Entries):
    """A file of pairs and judgements; made where there is none. Its arguments are those of `Database`."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def keep(self, batch: str, judgement: Judgement) -> bool:
        """Keep a judgement; True where it is new, False where this annotator has said the same of the pair already,
        wherever the answers stood and whyever it was skipped.

        Raises:
            FullError: the pair has all its judgements; this one is not kept.
            JudgedError: the annotator has judged this pair otherwise; undo that first.
            InputError: there is no such pair, or the judgement is not one of the batch's scale.
        """
        judgement = self.scale(batch).fit(judgement)
        said = (judgement.choice, judgement.strength, judgement.chosen_safe, judgement.rejected_safe)
        with self._transaction():
            query = "SELECT number, places, withdrawn FROM items WHERE batch = ? AND id = ?"
            item = self._sql.execute(query, (self._batch(batch), judgement.pair)).fetchone()
            if item is None:
                raise InputError(f"pair: batch {batch!r} of {self.path} has no pair {judgement.pair!r}")
            number, places, withdrawn = item
            there = self._sql.execute(
                "SELECT choice, strength, chosen_safe, rejected_safe FROM judgements"
                " WHERE item = ? AND annotator = ? AND undone_at IS NULL",
                (number, judgement.annotator),
            ).fetchone()
            if there is not None:
                if tuple(there) == said:
                    return False
                raise JudgedError(
                    f"pair: {judgement.annotator} has judged {judgement.pair!r} otherwise; take that back first"
                )
            if places <= 0 or withdrawn:
                raise FullError(f"pair: {judgement.pair!r} has all the judgements it wants; this one is not kept")
            self._sql.execute(
                "INSERT INTO judgements (item, annotator, choice, strength, chosen_safe, rejected_safe, shown_left,"
                " skipped, seconds, kept_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    judgement.annotator,
                    *said,
                    judgement.left,
                    judgement.skipped,
                    judgement.seconds,
                    self._clock(),
                ),
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
                yield after, name, pair_of(text), _judgement(id, values)

    def judgement_of(self, item: int, annotator: str) -> Judgement | None:
        """What this annotator says of the pair with this number; None where they have not judged it."""
        rows = self._rows(
            f"SELECT items.id, {_FIELDS} FROM judgements JOIN items ON items.number = item"
            " WHERE item = ? AND annotator = ? AND undone_at IS NULL",
            item,
            annotator,
        )
        return _judgement(rows[0][0], rows[0][1:]) if rows else None

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


_FIELDS = "annotator, choice, strength, chosen_safe, rejected_safe, shown_left, seconds, skipped"


def _judgement(pair: str, values: Sequence[Any]) -> Judgement:
    """Of the columns `_FIELDS`."""
    annotator, choice, strength, chosen, rejected, left, seconds, skipped = values
    safe, other = (None if label is None else bool(label) for label in (chosen, rejected))
    return Judgement(pair, annotator, choice, strength, safe, other, left, seconds, skipped)
