"""Time awareness: rows whose right answer depends on the date in the context (Llama 2 paper, section 5.2).

The paper added 1,000 SFT examples that were related to dates, each with the date at which its question is posed, and
with the date of the event, before which the question makes no sense. Here both come from a `DatedFact`: what holds from
which day on. How the rows are made from it is decision 57. Pure.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from rlhf.conversation import Conversation, Message, check_conversation
from rlhf.errors import InputError
from rlhf.jsonl import read_rows

Period = Literal["not yet", "earlier", "newest"]
_DATE = re.compile(r"(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?")


def parse_date(text: str | int) -> date:
    """2009, 2009-01 or 2009-01-20 as its first day. Raises InputError for anything else."""
    match = _DATE.fullmatch(str(text))
    try:
        if match is None:
            raise ValueError
        return date(*(int(part or 1) for part in match.groups()))
    except ValueError:
        raise InputError(f"{text!r} is no date; write 2009, 2009-01 or 2009-01-20") from None


@dataclass(frozen=True)
class DatedFact:
    """A question whose answer changes at known dates.

    Args:
        question: in the present tense, without a date: "Who is the mayor of Tolby?".
        timeline: date -> the value from that day on, ascending; 2009, 2009-01 or 2009-01-20. In a value {years} stands
            for the whole years since that date ("How long ago did ... begin?").
        answer: the trained answer, with {value} in it.
        before: the trained answer before the first date.
        before_words: what an answer before the first date must say to be right.
    """

    question: str
    timeline: dict[str, str]
    answer: str = "{value}"
    before: str = "That has not happened yet."
    before_words: str = "yet"

    def __post_init__(self) -> None:
        for name in ("question", "answer", "before", "before_words"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InputError(f"{name}: must be a non-empty text, got {getattr(self, name)!r}")
        if not isinstance(self.timeline, dict) or not self.timeline:
            raise InputError(f'timeline: must be like {{"1964": "Anna", "1981": "Boris"}}, got {self.timeline!r}')
        for text, value in self.timeline.items():
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"timeline: the value at {text} must be a non-empty text, got {value!r}")
        try:
            days = [parse_date(text) for text in self.timeline]
        except InputError as error:
            raise InputError(f"timeline: {error}") from None
        if any(later <= day for day, later in pairwise(days)):
            raise InputError(f"timeline: dates must ascend, got {', '.join(self.timeline)}")
        if "{value}" not in self.answer:
            raise InputError(f"answer: must contain {{value}}, got {self.answer!r}")
        if not _says(self.before, self.before_words):
            raise InputError(f"before_words: {self.before_words!r} does not occur in before, {self.before!r}")

    def period(self, day: date) -> Period:
        """Where `day` lies: before the first date, from the last one on, or between."""
        days = [parse_date(text) for text in self.timeline]
        return "not yet" if day < days[0] else "newest" if day >= days[-1] else "earlier"

    def value_at(self, day: date) -> str | None:
        """What holds at `day`; None before the first date."""
        since = [text for text in self.timeline if parse_date(text) <= day]
        return _filled(self.timeline[since[-1]], since[-1], day) if since else None

    def answer_at(self, day: date) -> str:
        """The answer to train on for a question that is posed at `day`."""
        value = self.value_at(day)
        return self.before if value is None else self.answer.replace("{value}", value)

    def is_right(self, answer: str, day: date) -> bool:
        """Whether an answer given at `day` says what holds then, and nothing that holds at another time.

        A rule on whole words, whatever their case: of all values that at `day` alone must occur; before the first date
        none, but `before_words`. A value that is part of a longer one ("Anna", "Anna Clara") is not counted.
        """
        value = self.value_at(day)
        values = {_filled(one, text, max(day, parse_date(text))) for text, one in self.timeline.items()}
        said, rest = set(), answer
        for one in sorted(values, key=len, reverse=True):
            if _says(rest, one):
                said.add(one)
                rest = _word(one).sub(" ", rest)
        return said == {value} if value is not None else not said and _says(answer, self.before_words)


def _filled(value: str, since: str, day: date) -> str:
    start = parse_date(since)
    years = day.year - start.year - ((day.month, day.day) < (start.month, start.day))
    return value.replace("{years}", str(years))


def _word(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)


def _says(text: str, words: str) -> bool:
    return _word(words).search(text) is not None


def fact_of(row: Mapping[str, Any]) -> DatedFact:
    """A row {"question", "timeline", ...} as a fact. InputError names the field that is missing, wrong or unknown."""
    known = DatedFact.__dataclass_fields__
    given = {name: value for name, value in row.items() if value is not None}
    for name in given:
        if name not in known:
            raise InputError(f"{name}: is no field of a dated fact; these are {', '.join(known)}")
    for name in ("question", "timeline"):
        if name not in given:
            raise InputError(f"{name}: is missing")
    return DatedFact(**given)


def read_facts(path: Path) -> list[DatedFact]:
    """The facts of a file, in its order. InputError names file and line, also where a question comes twice."""
    facts: dict[str, DatedFact] = {}
    for number, row in read_rows(path):
        try:
            fact = fact_of(row)
            if fact.question in facts:
                raise InputError(f"question: {fact.question!r} comes twice; put all its dates into one timeline")
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        facts[fact.question] = fact
    return list(facts.values())


@dataclass(frozen=True)
class DatedQuestion:
    """A fact asked at a date.

    Args:
        group: what training saw of it (`SPLITS`), or "no date".
        day: as the context tells it; without a date in the context, the day whose answer is right.
    """

    group: str
    fact: DatedFact
    day: date

    def prompt(self, context: str, date_format: str) -> Conversation:
        """The context with the date as a system message (none for "no date"), and the question."""
        told = Message(role="system", content=context.replace("{date}", self.day.strftime(date_format)))
        asked = Message(role="user", content=self.fact.question)
        return [asked] if self.group == NO_DATE else [told, asked]

    def row(self, context: str, date_format: str) -> dict[str, Any]:
        """A row of a test file; `question_of` reads it."""
        own = {"group": self.group, "date": self.day.isoformat(), "fact": asdict(self.fact)}
        return {"messages": self.prompt(context, date_format), **own}


def question_of(row: Mapping[str, Any]) -> tuple[Conversation, DatedQuestion]:
    """(prompt, what is asked) of a test file's row. InputError names what is missing or wrong."""
    for name in ("messages", "group", "date", "fact"):
        if name not in row:
            raise InputError(f"{name}: is missing; recipes/data/time_awareness.py writes such rows")
    messages = check_conversation(row["messages"])
    return messages, DatedQuestion(row["group"], fact_of(row["fact"]), parse_date(row["date"]))


NO_DATE = "no date"
# group of test questions -> (about facts that training holds out, at years that it holds out)
SPLITS = {"trained": (False, False), "new years": (False, True), "new facts": (True, False)}


@dataclass(frozen=True)
class Plan:
    """What is trained on and what is held out.

    Args:
        facts, new_facts: the facts of the rows, and those held out.
        days, new_days: the days at which questions are posed, as the context tells them, and those of held-out years.
    """

    facts: tuple[DatedFact, ...]
    new_facts: tuple[DatedFact, ...]
    days: tuple[date, ...]
    new_days: tuple[date, ...]

    @property
    def last(self) -> date:
        """The day as of which a question without a date is answered."""
        return max(*self.days, *self.new_days)


def told_days(first: date, last: date, date_format: str) -> list[date]:
    """Every day from first to last as `date_format` tells it, each once: with "%Y" the first days of the years.

    Raises:
        InputError: no year can be read back from what the format tells.
    """
    told = set()
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        try:
            told.add(datetime.strptime(day.strftime(date_format), date_format).date())
        except ValueError:
            told.add(date.min)
    if not {day.year for day in told} <= set(range(first.year, last.year + 1)):
        raise InputError(f"date_format: {date_format!r} does not tell the year; use e.g. %Y or %d %B %Y")
    return sorted(told)


def make_plan(
    facts: Sequence[DatedFact], days: Sequence[date], new_facts: float, new_years: float, rng: random.Random
) -> Plan:
    """Hold out a share of the facts and a share of the years, at least one of each unless the share is 0.

    Raises:
        InputError: no fact or no year is left to train on.
    """
    years = sorted({day.year for day in days})
    held: dict[str, list[Any]] = {}
    for name, found, share in (("heldout_facts", list(facts), new_facts), ("heldout_years", years, new_years)):
        count = max(1, round(share * len(found))) if share else 0
        if count >= len(found):
            raise InputError(f"{name}: holds out {count} of {len(found)}, and none is left; give more, or 0")
        held[name] = rng.sample(found, count)
    kept_out = {fact.question for fact in held["heldout_facts"]}
    return Plan(
        tuple(fact for fact in facts if fact.question not in kept_out),
        tuple(fact for fact in facts if fact.question in kept_out),
        tuple(day for day in days if day.year not in held["heldout_years"]),
        tuple(day for day in days if day.year in held["heldout_years"]),
    )


def _by_period(fact: DatedFact, days: Sequence[date]) -> list[list[date]]:
    periods: dict[str | None, list[date]] = {}
    for day in days:
        since = [text for text in fact.timeline if parse_date(text) <= day]
        periods.setdefault(since[-1] if since else None, []).append(day)
    return list(periods.values())


def training_questions(plan: Plan, count: int, undated: float, rng: random.Random) -> Iterator[DatedQuestion]:
    """`count` questions about the plan's facts: a fact, one of its periods (also the one before its first date), and a
    day of it, each drawn evenly. A share `undated` comes without a date, to be answered as of the plan's last day."""
    periods = [_by_period(fact, plan.days) for fact in plan.facts]
    for _ in range(count):
        number = rng.randrange(len(plan.facts))
        if rng.random() < undated:
            yield DatedQuestion(NO_DATE, plan.facts[number], plan.last)
        else:
            yield DatedQuestion("trained", plan.facts[number], rng.choice(rng.choice(periods[number])))


def test_questions(plan: Plan, per_fact: int, rng: random.Random) -> Iterator[DatedQuestion]:
    """At most `per_fact` questions about each fact in each of SPLITS, all different, as even over the fact's periods as
    can be; then every fact without a date."""
    for group, (new_fact, new_year) in SPLITS.items():
        for fact in plan.new_facts if new_fact else plan.facts:
            periods = [rng.sample(own, len(own)) for own in _by_period(fact, plan.new_days if new_year else plan.days)]
            chosen: list[date] = []
            while any(periods) and len(chosen) < per_fact:
                chosen += [own.pop() for own in periods if own]
            yield from (DatedQuestion(group, fact, day) for day in sorted(chosen[:per_fact]))
    for fact in (*plan.facts, *plan.new_facts):
        yield DatedQuestion(NO_DATE, fact, plan.last)
