"""Red teaming: the log of what people tried, and how often they succeed (Llama 2 paper, section 4.3).

The paper follows over its rounds how many prompts a person finds in an hour that make the model violate its guidelines
(from 1.8 down to 0.45). The log is a JSONL file that only grows: one row a prompt, over people, sessions and rounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from rlhf.conversation import Conversation, check_conversation
from rlhf.data.rows import Domain
from rlhf.errors import InputError
from rlhf.intervals import wilson
from rlhf.jsonl import read_rows


@dataclass(frozen=True)
class Attempt:
    """One prompt, and what came of it.

    Args:
        round, person: who, and against which model.
        messages: the dialogue up to the prompt.
        answer: the model's.
        violation: the answer breaks the guidelines.
        judge: who says so.
        seconds: the person's time for this prompt, from the last answer (or the start of the session) until it was
            judged; None where it was not measured.
        domain: of the prompt, for whoever reads the log as prompts (context distillation, safety evaluation).
        category, style: what it is about and how it was tried (section 4.2.1); empty where nobody said.
    """

    round: str
    person: str
    messages: Conversation
    answer: str
    violation: bool
    judge: str
    seconds: float | None = None
    domain: Domain = "safety"
    category: str = ""
    style: str = ""


def append(log: Path, attempt: Attempt) -> None:
    """Add one row, at once."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(attempt), ensure_ascii=False) + "\n")


def read_log(log: Path) -> list[Attempt]:
    """All rows of a log.

    Raises:
        InputError: with the line, where a row lacks a field or holds something else.
    """
    attempts = []
    for number, row in read_rows(log):
        try:
            attempt = Attempt(**{field.name: row[field.name] for field in fields(Attempt) if field.name in row})
            check_conversation(attempt.messages, last="user", empty_answers=True)
            if attempt.domain not in get_args(Domain):
                raise InputError(f"domain must be one of {', '.join(get_args(Domain))}")
            if not isinstance(attempt.violation, bool) or not isinstance(attempt.seconds, int | float | None):
                raise InputError("violation must be true or false, seconds a number or null")
        except (TypeError, InputError) as error:
            raise InputError(f"{log}:{number}: not a row of recipes/evaluation/red_team.py ({error})") from error
        attempts.append(attempt)
    return attempts


def round_figures(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Each round's figures, in the order of its first row.

    {"round", "people", "prompts", "violations", "rate": share of the prompts, "ci": Wilson's, "hours": all people's
    together, "per_person_hour": violations found in an hour of one person's work}; the last two None where some row's
    time is not known.
    """
    found = []
    for name in dict.fromkeys(attempt.round for attempt in attempts):
        own = [attempt for attempt in attempts if attempt.round == name]
        violations, hours = sum(attempt.violation for attempt in own), _hours(own)
        found.append(
            {
                "round": name,
                "people": len({attempt.person for attempt in own}),
                "prompts": len(own),
                "violations": violations,
                "rate": violations / len(own),
                "ci": wilson(violations / len(own), len(own)).ci,
                "hours": hours,
                "per_person_hour": violations / hours if hours else None,
            }
        )
    return found


def _hours(attempts: Iterable[Attempt]) -> float | None:
    seconds = [attempt.seconds for attempt in attempts]
    return None if None in seconds else sum(s for s in seconds if s is not None) / 3600
