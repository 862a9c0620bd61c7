"""Instructions that a whole dialogue should obey: hobbies, languages, public figures (Llama 2 paper, section 3.3).

The lists come from a file or from the model itself. A file has a row for each constraint, `{"kind", "value"}`, where
kind is hobby, language or figure; of any other kind a row also has its wordings `text` and, if there is one, `short`.
A `pattern` (regular expression) says how to recognise an answer that obeys.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.jsonl import read_as

# kind -> long and short wording; the paper's examples are "You enjoy Tennis", "Act as Napoleon" and "Figure: Napoleon."
WORDINGS = {
    "hobby": ("You enjoy {value}.", "Hobby: {value}."),
    "language": ("Speak in {value}.", "Language: {value}."),
    "figure": ("Act as {value}.", "Figure: {value}."),
}
LIST_QUESTIONS = {
    "hobby": "Write a list of ten hobbies, one a line, nothing else.",
    "language": "Write a list of ten languages, one a line, nothing else.",
    "figure": "Write a list of ten public figures from history, one a line, nothing else.",
}
LONGEST_VALUE = 40
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s*")


@dataclass(frozen=True)
class Constraint:
    """One thing to keep to.

    Args:
        kind: of constraints of one kind an instruction has at most one.
        value: what it is about.
        text, short: its wordings.
        pattern: regular expression that is found in every answer that obeys, and in no other; None: no rule is known.
    """

    kind: str
    value: str
    text: str
    short: str
    pattern: str | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Constraint:
        """A row of a file of constraints; InputError names the field that is missing or wrong."""
        given: dict[str, Any] = {}
        for name in ("kind", "value", "text", "short", "pattern"):
            given[name] = row.get(name)
            required = name in ("kind", "value") or (name == "text" and row.get("kind") not in WORDINGS)
            if not (isinstance(given[name], str) and given[name].strip()) and (required or given[name] is not None):
                raise InputError(f"{name}: must be a non-empty text, got {given[name]!r}")
        text, short = (w.format(value=given["value"]) for w in WORDINGS.get(given["kind"], ("", "")))
        text = given["text"] or text
        try:
            re.compile(given["pattern"] or "")
        except re.error as error:
            raise InputError(f"pattern: {given['pattern']!r} is no regular expression ({error})") from None
        return cls(given["kind"], given["value"], text, given["short"] or short or text, given["pattern"])


@dataclass(frozen=True)
class Instruction:
    """What stands before a user's message: one or several constraints."""

    text: str
    constraints: tuple[Constraint, ...]

    @property
    def kind(self) -> str:
        """The kinds of its constraints: "figure", or "figure, language"."""
        return ", ".join(sorted(c.kind for c in self.constraints))


def read_constraints(path: Path) -> list[Constraint]:
    """The constraints of a file (jsonl, json, csv, parquet). InputError names file and line."""
    return read_as(path, Constraint.from_dict)


def constraints_from_lists(answers: Mapping[str, Sequence[str]]) -> list[Constraint]:
    """Constraints of the lists that a model wrote.

    Args:
        answers: kind, a key of WORDINGS -> the model's answers to LIST_QUESTIONS[kind]. Each line is a value; bullets,
            numbers and end marks are cut off, repetitions (also in other letter case) and what is longer than
            LONGEST_VALUE characters left out.

    Raises:
        InputError: a kind is left without any value.
    """
    constraints: list[Constraint] = []
    for kind, texts in answers.items():
        values: dict[str, str] = {}
        for line in (line for text in texts for line in text.splitlines()):
            value = _BULLET.sub("", line).strip().rstrip(".,;:!").strip()
            if 0 < len(value) <= LONGEST_VALUE:
                values.setdefault(value.lower(), value)
        if not values:
            raise InputError(f"instructions: the model wrote no list of kind {kind}; give a file with --instructions")
        constraints += [Constraint.from_dict({"kind": kind, "value": value}) for value in values.values()]
    return constraints


def draw_instructions(
    constraints: Sequence[Constraint], count: int, rng: random.Random, *, most: int = 2, short_share: float = 0.5
) -> list[Instruction]:
    """`count` instructions, each of 1 to `most` constraints of different kinds, drawn and ordered at random.

    Args:
        most: at most this many constraints in one (never more than there are kinds).
        short_share: probability that an instruction is in its short wording (the paper: half the time).
    """
    by_kind: dict[str, list[Constraint]] = {}
    for constraint in constraints:
        by_kind.setdefault(constraint.kind, []).append(constraint)
    drawn = []
    for _ in range(count):
        kinds = rng.sample(sorted(by_kind), rng.randint(1, min(most, len(by_kind))))
        chosen = tuple(rng.choice(by_kind[kind]) for kind in kinds)
        short = rng.random() < short_share
        drawn.append(Instruction(" ".join(c.short if short else c.text for c in chosen), chosen))
    return drawn
