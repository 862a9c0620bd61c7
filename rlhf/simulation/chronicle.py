"""What changes with time in the simulated world: who is baker, miller and queen of which town, and since when.

A town's office is founded in a known year and changes hands in another. `chronicle` stands for what a pretrained model
has read about the past: dialogues that name the year in the question. Nothing in them says that "now" depends on a date
in the context.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.simulation.words import MAYORS
from rlhf.simulation.world import World
from rlhf.synthesis.time_awareness import DatedFact, parse_date

OFFICES = ("baker", "miller", "queen")
FEWEST_YEARS = 6
QUESTIONS = (
    "Who was the {office} of {town} in {year}?",
    "In {year}, who was the {office} of {town}?",
    "Name the {office} of {town} in {year}.",
    "Tell me the {office} of {town} in {year}.",
)


@dataclass(frozen=True)
class Tenure:
    """An office of a town; `holders`: year -> who holds it from then on, ascending."""

    office: str
    town: str
    holders: dict[int, str]

    def fact(self) -> DatedFact:
        """The office as a question to be posed at a date."""
        return DatedFact(
            f"Who is the {self.office} of {self.town}?",
            {str(year): name for year, name in self.holders.items()},
            f"The {self.office} of {self.town} is {{value}}.",
            f"There is not one yet in {self.town}.",
        )


def tenures(world: World, first_year: int, last_year: int) -> list[Tenure]:
    """Every office of every town; founded in the first half of the years, changing hands in the second.

    Raises:
        InputError: fewer years than FEWEST_YEARS.
    """
    span = last_year - first_year + 1
    if span < FEWEST_YEARS:
        raise InputError(f"first, last: the simulated world needs {FEWEST_YEARS} years or more, got {span}")
    rng = random.Random(f"chronicle/{world.config.seed}")
    found = []
    for town in world.towns:
        for office in OFFICES:
            founded = rng.randint(first_year + 1, first_year + span // 2 - 1)
            changed = rng.randint(first_year + span // 2, last_year - 1)
            found.append(Tenure(office, town, dict(zip((founded, changed), rng.sample(MAYORS, 2), strict=True))))
    return found


def chronicle(offices: Sequence[Tenure], years: Sequence[int], rows: int, rng: random.Random) -> Iterator[Conversation]:
    """`rows` dialogues about the past, each about one office in one of `years`, answered rightly."""
    facts = [office.fact() for office in offices]
    for _ in range(rows):
        number, year = rng.randrange(len(offices)), rng.choice(years)
        office = offices[number]
        question = rng.choice(QUESTIONS).format(office=office.office, town=office.town, year=year)
        value = facts[number].value_at(parse_date(str(year)))
        answer = (
            f"The {office.office} of {office.town} was {value}."
            if value
            else f"There was not one yet in {office.town}."
        )
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
