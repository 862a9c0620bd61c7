"""Batches of pairs: what is asked, of whom, and how often."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rlhf.annotation.protocol import Pair
from rlhf.annotation.scales import PREFERENCE, SCALES, Scale
from rlhf.annotation.store.database import Database
from rlhf.errors import InputError

PEOPLE = "people"
GOLD = "gold"  # name of the batch of pairs whose answer is known, and who is asked about it
ENDLESS = 1_000_000  # judgements that such a pair wants: one of everybody


class Batches(Database):
    """The part of a `Store` that knows batches and their pairs."""

    def add_batch(
        self, name: str, pairs: Iterable[Pair], *, labels: int = 1, asked: str = PEOPLE, scale: str = PREFERENCE.name
    ) -> int:
        """Make the batch `name` these pairs; return how many are new to it. They are asked about in this order, new
        ones behind those that were there.

        Again with the same pairs changes nothing. A pair that was in the batch and is not among them is withdrawn: its
        judgements stay in the file, and nobody is asked about it, until a later call names it again. Where others are
        asked than before, or on another scale, the batch begins anew, and what there was is set aside as `<name>
        #<number>`.

        Args:
            name: of the batch.
            pairs: no id twice.
            labels: judgements that each pair wants.
            asked: who judges it: `PEOPLE`, or a text that says which machine; only people are shown pairs by `lease`.
            scale: how they may answer, a name of `rlhf.annotation.scales.SCALES`.

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
                "UPDATE batches SET name = name || ' #' || number, asked = 'set aside' WHERE name = ?"
                " AND (asked != ? OR scale != ?)",
                (name, asked, scale),
            )
            self._sql.execute(
                "INSERT INTO batches (name, labels, asked, scale) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET labels = excluded.labels",
                (name, labels, asked, scale),
            )
            batch = self._batch(name)
            known = dict(self._sql.execute("SELECT id, pair FROM items WHERE batch = ?", (batch,)).fetchall())
            self._sql.execute("UPDATE items SET withdrawn = 1 WHERE batch = ?", (batch,))
            for pair in pairs:
                text = json.dumps(pair.to_dict(), ensure_ascii=False)
                there = pair_of(known.get(pair.id, text))
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

    def labels(self, name: str) -> int | None:
        """Judgements that each pair of a batch wants; None: there is no such batch."""
        found = self._rows("SELECT labels FROM batches WHERE name = ?", name)
        return found[0][0] if found else None

    def scale(self, name: str) -> Scale:
        """How the pairs of a batch are answered."""
        return SCALES[self._rows("SELECT scale FROM batches WHERE number = ?", self._batch(name))[0][0]]

    def add_gold(self, pairs: Iterable[Pair], every: int) -> None:
        """Pairs whose answer is known, a being the better one, to be mixed among those of people's batches.

        Everybody is shown one after `every` judgements of theirs, each pair once. They are in no progress and no rows.
        """
        people = self.batches(people=True)
        scale = self.scale(people[0]) if people else PREFERENCE
        self.add_batch(GOLD, pairs, labels=ENDLESS, asked=GOLD, scale=scale.name)
        with self._transaction():
            self._sql.execute("INSERT OR REPLACE INTO settings VALUES ('gold every', ?)", (str(every),))

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
        return [pair_of(text) for (text,) in self._rows(query, self._batch(batch))]


def pair_of(text: str) -> Pair:
    row = json.loads(text)
    return Pair(**{**row, "models": tuple(row["models"])})
