"""What became of a source's rows: what was left out, not used, or stands there as no text should. Light."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.layouts.dialogue_text import marks_in
from rlhf.data.rows import Preference, Prompt


@dataclass
class Reading:
    """What became of a source's rows.

    Args:
        left_out: rows that were skipped, by reason.
        unused: fields that hold something and were not read, by the number of rows.
        spelt: how many rows spell out marks of chat formats, and which.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    spelt: tuple[int, frozenset[str]] = (0, frozenset())

    def leave_out(self, why: str) -> None:
        """Count a row that is left out."""
        self.left_out[reason(why)] += 1

    def see(self, row: Any) -> None:
        """Count a row of ours that spells out a mark."""
        if found := frozenset(mark for text in _texts_of(row) for mark in marks_in(text)):
            self.spelt = self.spelt[0] + 1, self.spelt[1] | found

    def sentences(self, name: str, kept: int) -> list[str]:
        """What to say of the file of this name, beside the `kept` rows; nothing where nothing was lost."""
        said = []
        if self.unused:
            said.append(f"{name}: fields not used: {', '.join(self.unused)}")
        rows, marks = self.spelt
        if rows:
            spelt = ", ".join(sorted(marks)[:10])
            said.append(
                f"{name}: {rows} of {kept} rows spell out marks of chat formats ({spelt}), which are read as text, not "
                "as a model's tokens; where rows are rendered already, give messages without them"
            )
        if self.left_out:
            total = self.left_out.total()
            detail = "; ".join(f"{count} x {why}" for why, count in self.left_out.most_common())
            said.append(f"{name}: skipped {total} of {total + kept} rows: {detail}")
        return said


def _texts_of(row: Any) -> Iterator[str]:
    """All texts of a row of ours."""
    if isinstance(row, Preference):
        yield from (row.chosen, row.rejected)
    if isinstance(row, str):
        yield row
    else:
        messages = row.messages if isinstance(row, (Preference, Prompt)) else row
        yield from (message["content"] for message in messages)


def reason(message: str) -> str:
    """An error's sentence without the value it quotes, so that equal mistakes count together."""
    return re.split(r",? got |, ['\"]|; its fields| at message \d", message, maxsplit=1)[0]
