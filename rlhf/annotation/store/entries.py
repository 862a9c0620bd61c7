"""What people wrote, beside what they judged: demonstrations, and the red team's attempts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.annotation.store.database import Database
from rlhf.conversation import Conversation
from rlhf.data.rows import Domain
from rlhf.errors import InputError

EntryKind = Literal["demonstration", "attempt"]


@dataclass(frozen=True)
class Entry:
    """One prompt that somebody wrote, with its answer.

    Args:
        kind: a demonstration, whose answer they wrote too; or an attempt of the red team, answered by a model.
        annotator: who wrote it.
        messages: the dialogue up to the prompt.
        answer: to it.
        domain: of the row that comes of it.
        about: of an attempt {"round", "model", "category", "style"}.
        violation: of an attempt: the answer breaks the guidelines; None: not judged yet (or a demonstration).
        better: of a violation: the safe answer that somebody wrote in its place; empty: nobody did.
        seconds: of the person's work.
        number: in the store; 0 before it is kept.
    """

    kind: EntryKind
    annotator: str
    messages: Conversation
    answer: str
    domain: Domain
    about: dict[str, str]
    violation: bool | None = None
    better: str = ""
    seconds: float | None = None
    number: int = 0


class Entries(Database):
    """The part of a `Store` that keeps what people wrote."""

    def add_entry(self, entry: Entry, key: str) -> Entry:
        """Keep an entry, and return it with its number; the same key again returns what was kept under it.

        Raises:
            InputError: somebody else's entry has this key.
        """
        content = json.dumps([entry.messages, entry.answer, entry.domain, entry.about], ensure_ascii=False)
        with self._transaction():
            self._sql.execute(
                "INSERT OR IGNORE INTO entries (key, kind, annotator, content, seconds, kept_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (key, entry.kind, entry.annotator, content, entry.seconds, self._clock()),
            )
            found = self._entry("key = ?", key)
        if found is None or (found.kind, found.annotator) != (entry.kind, entry.annotator):
            raise InputError("key: names what somebody else wrote")
        return found

    def keyed_entry(self, key: str) -> Entry | None:
        """The entry that was kept under this key."""
        return self._entry("key = ?", key)

    def judge_entry(self, number: int, annotator: str, violation: bool, better: str, seconds: float) -> Entry:
        """Say of one's own attempt whether its answer is a violation; again with the same words changes nothing."""
        with self._transaction():
            found = self.entry(number, annotator)
            if found.kind != "attempt":
                raise InputError(f"entry: {number} is no attempt")
            if found.violation is None:
                query = "UPDATE entries SET violation = ?, better = ?, seconds = ? WHERE number = ?"
                self._sql.execute(query, (violation, better, seconds, number))
            elif (found.violation, found.better) != (violation, better):
                raise InputError("entry: this attempt is judged already")
        return self.entry(number, annotator)

    def entry(self, number: int, annotator: str) -> Entry:
        """One of this annotator's own entries; InputError where it is not theirs, or there is none."""
        found = self._entry("number = ? AND annotator = ?", number, annotator)
        if found is None:
            raise InputError(f"entry: {annotator} has written no number {number}")
        return found

    def open_attempt(self, annotator: str) -> Entry | None:
        """This annotator's newest attempt, if it waits for its verdict."""
        found = self._entry("annotator = ? AND kind = 'attempt' ORDER BY number DESC LIMIT 1", annotator)
        return found if found is not None and found.violation is None else None

    def entries(self, kind: EntryKind, annotator: str | None = None) -> Iterator[Entry]:
        """All that were kept, in their order; attempts without a verdict are left out."""
        query = (
            f"SELECT {_COLUMNS} FROM entries WHERE kind = ? AND annotator = ifnull(?, annotator)"
            " AND (kind != 'attempt' OR violation IS NOT NULL) ORDER BY number"
        )
        yield from (_entry(row) for row in self._rows(query, kind, annotator))

    def _entry(self, where: str, *values: Any) -> Entry | None:
        rows = self._rows(f"SELECT {_COLUMNS} FROM entries WHERE {where}", *values)
        return _entry(rows[0]) if rows else None


_COLUMNS = "number, kind, annotator, content, violation, better, seconds"


def _entry(row: Any) -> Entry:
    number, kind, annotator, content, violation, better, seconds = row
    judged = None if violation is None else bool(violation)
    messages, answer, domain, about = json.loads(content)
    return Entry(kind, annotator, messages, answer, domain, about, judged, better, seconds, number)
