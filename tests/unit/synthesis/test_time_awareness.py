"""Dated facts: the right answer at a date, by hand; rows and what is held out; bad input."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.simulation.chronicle import QUESTIONS, chronicle, tenures
from rlhf.simulation.world import World, WorldConfig
from rlhf.synthesis.time_awareness import (
    NO_DATE,
    DatedFact,
    fact_of,
    make_plan,
    parse_date,
    question_of,
    read_facts,
    told_days,
    training_questions,
)
from rlhf.synthesis.time_awareness import test_questions as questions_to_test

MAYOR = DatedFact(
    "Who is the mayor of Tolby?",
    {"1964": "Anna", "1981-06": "Boris", "1990-03-15": "Anna Clara"},
    "The mayor is {value}.",
    "Tolby has no mayor yet.",
)
AGO = DatedFact("How long ago did the fair begin?", {"2009-01-20": "{years}"}, "It began {value} years ago.")


@pytest.mark.parametrize(
    ("day", "period", "answer"),
    [
        ("1963-12-31", "not yet", "Tolby has no mayor yet."),
        ("1964-01-01", "earlier", "The mayor is Anna."),
        ("1981-05-31", "earlier", "The mayor is Anna."),
        ("1981-06-01", "earlier", "The mayor is Boris."),
        ("1990-03-14", "earlier", "The mayor is Boris."),
        ("1990-03-15", "newest", "The mayor is Anna Clara."),
        ("2024", "newest", "The mayor is Anna Clara."),
    ],
)
def test_the_right_answer_at_a_date(day: str, period: str, answer: str) -> None:
    asked = parse_date(day)
    assert (MAYOR.period(asked), MAYOR.answer_at(asked)) == (period, answer)
    others = {MAYOR.answer_at(parse_date(other)) for other in ("1963", "1964", "1985", "2000")} - {answer}
    assert MAYOR.is_right(answer, asked) and MAYOR.is_right(answer.upper(), asked)
    assert not any(MAYOR.is_right(other, asked) for other in others)
    assert not MAYOR.is_right("", asked)
    assert not MAYOR.is_right(" ".join(sorted(others)) + answer, asked), "naming everybody is not knowing"


@pytest.mark.parametrize(("day", "years"), [("2009-01-20", 0), ("2017-01-19", 7), ("2017-01-20", 8), ("2026", 16)])
def test_how_long_ago_in_whole_years(day: str, years: int) -> None:
    answer = AGO.answer_at(parse_date(day))
    assert answer == f"It began {years} years ago." and AGO.is_right(answer, parse_date(day))
    assert not AGO.is_right(f"It began {years + 1} years ago.", parse_date(day))
    assert AGO.answer_at(parse_date("2009-01-19")) == "That has not happened yet."


def test_days_as_a_format_tells_them() -> None:
    assert told_days(date(1998, 5, 1), date(2000, 2, 1), "%Y") == [date(y, 1, 1) for y in (1998, 1999, 2000)]
    assert len(told_days(date(2000, 1, 1), date(2000, 12, 31), "%d %B %Y")) == 366
    for bad in ("%d %B", "today", "%Q"):
        with pytest.raises(InputError, match="date_format: "):
            told_days(date(1998, 5, 1), date(2000, 2, 1), bad)


def test_held_out_facts_and_years_are_in_no_row_and_alone_in_their_part_of_the_test() -> None:
    facts = [office.fact() for office in tenures(World.make(WorldConfig()), 1950, 1999)]
    days = told_days(date(1950, 1, 1), date(1999, 1, 1), "%Y")
    plan = make_plan(facts, days, 0.2, 0.1, random.Random(0))
    assert (len(plan.facts), len(plan.new_facts), len(plan.days), len(plan.new_days)) == (24, 6, 45, 5)
    rows = list(training_questions(plan, 3000, 0.1, random.Random(1)))
    assert rows == list(training_questions(plan, 3000, 0.1, random.Random(1)))
    assert {row.fact.question for row in rows} == {fact.question for fact in plan.facts}
    dated = [row for row in rows if row.group != NO_DATE]
    assert {row.day for row in dated} <= set(plan.days) and 2600 < len(dated) < 2800
    assert all(row.day == plan.last == date(1999, 1, 1) for row in rows if row.group == NO_DATE)
    periods = Counter(row.fact.period(row.day) for row in dated)
    assert all(800 < count < 1000 for count in periods.values()), "each period as often as another"

    tested = list(questions_to_test(plan, 4, random.Random(2)))
    new_facts, new_days = set(map(id, plan.new_facts)), set(plan.new_days)
    for row in tested:
        if row.group != NO_DATE:
            expected = {(True, False): "new facts", (False, True): "new years", (False, False): "trained"}
            assert row.group == expected[id(row.fact) in new_facts, row.day in new_days]
    groups = Counter(row.group for row in tested)
    assert groups == {"trained": 24 * 4, "new years": 24 * 4, "new facts": 6 * 4, NO_DATE: 30}
    assert len({(row.group, row.fact.question, row.day) for row in tested}) == len(tested)


def test_a_prompt_tells_its_date_and_a_row_is_read_back() -> None:
    plan = make_plan([AGO, MAYOR], [date(2020, 3, 1), date(2021, 3, 1)], 0, 0, random.Random(0))
    told = ("Today is {date}.", "%d %B %Y")
    for row in questions_to_test(plan, 2, random.Random(0)):
        messages = row.prompt(*told)
        system = [] if row.group == NO_DATE else [{"role": "system", "content": f"Today is 01 March {row.day.year}."}]
        assert messages == [*system, {"role": "user", "content": row.fact.question}]
        assert question_of(json.loads(json.dumps(row.row(*told)))) == (messages, row)


def test_the_chronicle_is_right_and_silent_about_held_out_years() -> None:
    world = World.make(WorldConfig(seed=3))
    offices = tenures(world, 1950, 1999)
    assert offices == tenures(world, 1950, 1999) != tenures(World.make(WorldConfig(seed=4)), 1950, 1999)
    assert len(offices) == 30 and all(1950 < min(o.holders) < max(o.holders) < 1999 for o in offices)
    facts = {(o.office, o.town): o.fact() for o in offices}
    years = [y for y in range(1950, 2000) if y % 5]
    for question, answer in chronicle(offices, years, 300, random.Random(0)):
        (key, year), *_ = [
            (key, y)
            for key in facts
            for y in years
            if question["content"] in [q.format(office=key[0], town=key[1], year=y) for q in QUESTIONS]
        ]
        assert facts[key].is_right(answer["content"], date(year, 1, 1))
    with pytest.raises(InputError, match="needs 6 years or more, got 5"):
        tenures(world, 1995, 1999)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"timeline": {"1964": "Anna"}}, "question: is missing"),
        ({"question": "Who?", "timeline": {}}, "timeline: must be like"),
        ({"question": "Who?", "timeline": {"64": "Anna"}}, "timeline: '64' is no date; write 2009, 2009-01 or"),
        ({"question": "Who?", "timeline": {"1964-13": "Anna"}}, "timeline: '1964-13' is no date"),
        ({"question": "Who?", "timeline": {"1981": "Anna", "1964": "Boris"}}, "timeline: dates must ascend, got 1981"),
        ({"question": "Who?", "timeline": {"1964": ""}}, "timeline: the value at 1964 must be a non-empty text"),
        ({"question": "Who?", "timeline": {"1964": "Anna"}, "answer": "Anna."}, "answer: must contain {value}"),
        ({"question": "Who?", "timeline": {"1964": "Anna"}, "before": "Nobody."}, "before_words: 'yet' does not occur"),
        ({"question": "Who?", "timeline": {"1964": "Anna"}, "anwser": "{value}"}, "anwser: is no field of a dated"),
    ],
)
def test_a_bad_fact_is_named_with_file_and_line(tmp_path: Path, row: dict[str, object], words: str) -> None:
    good = {"question": "Since when?", "timeline": {"1964": "Anna"}, "answer": None}
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, (good, row))))
    with pytest.raises(InputError) as error:
        read_facts(tmp_path / "facts.jsonl")
    assert f"facts.jsonl:2: {words}" in str(error.value)
    assert fact_of(good).answer == "{value}"


def test_a_question_that_comes_twice_and_nothing_left_to_train_on(tmp_path: Path) -> None:
    row = {"question": "Who?", "timeline": {"1964": "Anna"}}
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, (row, row))))
    with pytest.raises(InputError, match=r"facts.jsonl:2: question: 'Who.' comes twice"):
        read_facts(tmp_path / "facts.jsonl")
    with pytest.raises(InputError, match="heldout_facts: holds out 1 of 1, and none is left"):
        make_plan([MAYOR], [date(2000, 1, 1)], 0.1, 0, random.Random(0))
