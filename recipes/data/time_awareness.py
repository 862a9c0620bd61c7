"""Time awareness: training rows whose right answer depends on the date in the context (Llama 2 paper, section 5.2).

A fact has a timeline: what holds from which date on. Each row names a date in its system message, asks in the present
tense, and is answered with what held then, or with "not yet" before the first date. A share of the facts and of the
years is held out, so that recipes/evaluation/evaluate_time_awareness.py can tell whether a model learned to look at the
date or learned the rows by heart.

    python recipes/data/time_awareness.py --config recipes/configs/embedded/time_awareness.yaml
    python recipes/data/time_awareness.py --facts my_facts.jsonl --first 2000 --last 2025-06 --output time

Writes into the output folder: sft.jsonl (the rows; mix them into what recipes/sft.py trains on) and test.jsonl (the
questions of the evaluation); of a simulated world also facts.jsonl (its dated facts, in the form of yours) and
chronicle.jsonl (what a model has read about the past).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from rlhf.configuration import run_recipe
from rlhf.errors import InputError
from rlhf.jsonl import Row
from rlhf.simulation.chronicle import chronicle, tenures
from rlhf.simulation.world import World
from rlhf.stage import InputPath, Stage, StageConfig, open_stage
from rlhf.synthesis.time_awareness import (
    DatedQuestion,
    Plan,
    make_plan,
    parse_date,
    read_facts,
    test_questions,
    told_days,
    training_questions,
)


@dataclass(frozen=True, kw_only=True)
class TimeAwarenessConfig(StageConfig):
    """Dated rows.

    Args:
        facts: file of your dated facts, rows {question, timeline} and, where you want them, {answer, before,
            before_words}; or
        world: world.json of recipes/data/simulated_world.py, whose offices change hands.
        first, last: questions are posed from here to there: 2009, 2009-01 (their first day) or 2009-01-20. Without a
            date in the context the right answer is that at `last`.
        context: the system message, with {date} in it.
        date_format: how a date is told, in the words of Python's strftime. With %Y a row's date is the year's first
            day.
        rows: how many to train on (the paper: 1,000).
        undated_share: of the rows, without a date.
        heldout_facts, heldout_years: share of the facts and of the years that no row is about; 0: none.
        test_per_fact: questions about each fact in each part of the test.
        chronicle_rows: with `world`: dialogues about the past, none about a held-out year.
        seed: of every draw.
    """

    facts: InputPath | None = None
    world: InputPath | None = None
    first: str | int = "1950"
    last: str | int = "1999"
    context: str = "Today is {date}."
    date_format: str = "%Y-%m-%d"
    rows: int = 1000
    undated_share: float = 0.1
    heldout_facts: float = 0.2
    heldout_years: float = 0.2
    test_per_fact: int = 9
    chronicle_rows: int = 8000
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.facts is None) == (self.world is None):
            raise InputError("facts, world: name one of them, your own dated facts or a simulated world")
        for name in ("first", "last"):
            try:
                parse_date(getattr(self, name))
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        if parse_date(self.first) >= parse_date(self.last):
            raise InputError(f"first, last: first must come before last, got {self.first} and {self.last}")
        if "{date}" not in self.context:
            raise InputError(f"context: must contain {{date}}, got {self.context!r}")
        for name in ("rows", "test_per_fact", "chronicle_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("undated_share", "heldout_facts", "heldout_years"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: must be 0 or above and below 1, got {getattr(self, name)}")


def main(config: TimeAwarenessConfig) -> None:
    stage = open_stage(config, one_process=True)
    days = told_days(parse_date(config.first), parse_date(config.last), config.date_format)
    rng = random.Random(f"time awareness/{config.seed}")
    if config.facts is not None:
        facts, offices = read_facts(config.facts), []
    else:
        assert config.world is not None  # the config asks for one of the two

        offices = tenures(World.load(config.world), days[0].year, days[-1].year)
        facts = [office.fact() for office in offices]
    plan = make_plan(facts, days, config.heldout_facts, config.heldout_years, rng)

    with stage.work():
        told = (config.context, config.date_format)
        rows = list(training_questions(plan, config.rows, config.undated_share, rng))
        answered = ([*row.prompt(*told), {"role": "assistant", "content": row.fact.answer_at(row.day)}] for row in rows)
        tested = list(test_questions(plan, config.test_per_fact, rng))
        sets: dict[str, Iterable[Row]] = {
            "sft": ({"messages": messages} for messages in answered),
            "test": (row.row(*told) for row in tested),
        }
        if offices:
            years = sorted({day.year for day in plan.days})
            told_years = chronicle(offices, years, config.chronicle_rows, rng)
            sets["facts"] = (asdict(fact) for fact in facts)
            sets["chronicle"] = ({"messages": messages} for messages in told_years)
        for name, own in sets.items():
            stage.write_rows(f"{name}.jsonl", own)
        say_counts(stage, plan, rows, len(tested))


def say_counts(stage: Stage, plan: Plan, rows: Sequence[DatedQuestion], tested: int) -> None:
    """Two lines about the rows that were made."""
    kinds = [row.fact.period(row.day) for row in rows]
    stage.say(f"{len(rows)} rows about {len(plan.facts)} facts, {kinds.count('not yet')} of them before the event;")
    new_years = {day.year for day in plan.new_days}
    stage.say(f"held out: {len(plan.new_facts)} facts, {len(new_years)} years; {tested} test questions")


if __name__ == "__main__":
    run_recipe(main, TimeAwarenessConfig)
