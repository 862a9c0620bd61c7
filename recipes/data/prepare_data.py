"""Your prompts and preferences, split so that nothing held out is ever read, and dealt to the versions of a run.

All files are split AT ONCE by first user turn, as first turns repeat within and between them: what a test prompt or a
held-out preference begins with stands in no training row. Files that you hold out yourself keep their rows; what begins
like one of them is taken out of the training rows. Where you give no prompts, those of the preferences are taken.

    python recipes/data/prepare_data.py --output data \\
        --helpfulness_preferences '[helpful.jsonl]' --safety_preferences '[harmless.jsonl]'

Writes, as rows of `rlhf.data.rows`: prompts_<version>.jsonl for every version, validation_prompts.jsonl,
test_prompts.jsonl; where there are preferences preferences_train.jsonl and preferences_test.jsonl, of both domains;
referee_train.jsonl and referee_test.jsonl where a referee has some of its own; and split.json, the counts of all that
and of what was left out and why.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar, get_args

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_preferences, load_prompts
from rlhf.data.prompt_sets import draw_prompts, short_prompts
from rlhf.data.rows import Domain, Preference, Prompt
from rlhf.data.sharing import Identity, source_identity
from rlhf.data.splitting import first_turn, part_of
from rlhf.errors import InputError
from rlhf.stage import StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class PrepareDataConfig(StageConfig):
    """Which rows go where.

    Args:
        prompts: files or hub names of prompts to train on; none: the preferences' own.
        validation_prompts: held-out prompts of yours, for PPO's early stop; none: split off.
        test_prompts: held-out prompts of yours, which evaluations answer; none: split off.
        helpfulness_preferences: files or hub names of preferences for helpfulness.
        safety_preferences: the same for safety.
        test_preferences: held-out preferences of yours, each row with its domain; none: split off.
        referee_preferences: preferences that a referee is trained on, a reward model that nothing else reads. Pairs
            that the reward models are trained on are left out; so one file may stand in both lists, and the referee is
            trained on what `max_preferences` leaves of it.
        versions: names of the run's versions.
        system: a system message that every dialogue without one of its own begins with, prompts and preferences alike.
        rounds: which prompts a version gets: "all" of them each time, a "share" that no other version gets (the paper
            has new prompts each round), or the "files" in order, one a version.
        validation_share: share of the first turns split off for validation, where you give none.
        test_share: the same for the test, and with the former for the held-out preferences.
        max_preferences: most training pairs of a domain; 0: no limit, as for the next six.
        max_referee_preferences: most training pairs of the referee.
        max_test_preferences: most held-out pairs of a domain, and of the referee's.
        max_prompt_characters: leave out a prompt whose messages have more together.
        max_prompts: most training prompts of a version, as even over the domains as there are.
        max_validation_prompts: most validation prompts.
        max_test_prompts: most test prompts.
        on_bad_row: refuse stops at a bad row, skip leaves it out and counts it.
        seed: of the split and of the prompts drawn.
    """

    prompts: tuple[DataSource, ...] = ()
    validation_prompts: tuple[DataSource, ...] = ()
    test_prompts: tuple[DataSource, ...] = ()
    helpfulness_preferences: tuple[DataSource, ...] = ()
    safety_preferences: tuple[DataSource, ...] = ()
    test_preferences: tuple[DataSource, ...] = ()
    referee_preferences: tuple[DataSource, ...] = ()
    versions: tuple[str, ...] = ("v1",)
    system: str | None = None
    rounds: Literal["all", "share", "files"] = "all"
    validation_share: float = 0.05
    test_share: float = 0.1
    max_preferences: int = 0
    max_referee_preferences: int = 0
    max_test_preferences: int = 0
    max_prompt_characters: int = 2000
    max_prompts: int = 0
    max_validation_prompts: int = 64
    max_test_prompts: int = 200
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.prompts or self.has_preferences):
            raise InputError("prompts: name files of prompts, or of preferences, whose prompts are taken then")
        if self.system is not None and not self.system.strip():
            raise InputError(f"system: must be a non-empty text, got {self.system!r}; leave it out for none")
        if not self.versions:
            raise InputError("versions: name at least one, e.g. [v1]")
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}: must lie between 0 and 1, got {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise InputError("validation_share, test_share: together they must leave rows to train on")
        for name in (field.name for field in fields(self) if field.name.startswith("max_")):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be 0 (no limit) or above, got {getattr(self, name)}")
        if self.rounds == "files" and len(self.prompts) != len(self.versions):
            raise InputError(
                f"rounds: files needs one file of prompts a version, got {len(self.prompts)} for {len(self.versions)}; "
                "name as many, or set rounds to all or share"
            )

    @property
    def has_preferences(self) -> bool:
        """Whether there are any to train on."""
        return bool(self.helpfulness_preferences or self.safety_preferences)


PARTS = ("train", "validation", "test")
Row = TypeVar("Row", Prompt, Preference)


def main(config: PrepareDataConfig) -> None:
    stage = open_stage(config, one_process=True)
    files = Files(config)
    given = {
        "train": [files.prompts([source]) for source in config.prompts],
        "validation": [files.prompts(config.validation_prompts)],
        "test": [files.prompts(config.test_prompts)],
    }
    preferences = files.preferences(config.helpfulness_preferences, "helpfulness")
    preferences += files.preferences(config.safety_preferences, "safety")
    test_preferences = files.preferences(config.test_preferences, None)
    prompts_left_out: Counter[str] = Counter()
    if not config.prompts:
        given["train"] = [short_prompts(preferences, config.max_prompt_characters, prompts_left_out)]

    split = Split(config, given, test_preferences)
    dealt = [split.parts(rows) for rows in given["train"]]
    asked = deal([parts["train"] for parts in dealt], config)
    held_out = {
        part: given[part][0] or [prompt for parts in dealt for prompt in parts[part]] for part in ("validation", "test")
    }
    sets: dict[str, Sequence[Prompt | Preference]] = {
        f"prompts_{version}": draw_prompts(rows, config.max_prompts, config.seed) for version, rows in asked.items()
    }
    sets["validation_prompts"] = draw_prompts(held_out["validation"], config.max_validation_prompts, config.seed)
    sets["test_prompts"] = draw_prompts(held_out["test"], config.max_test_prompts, config.seed)
    sets |= dealt_pairs(config, split, preferences, test_preferences, files)
    if empty := [name for name, rows in sets.items() if not rows]:
        raise InputError(
            f"prompts: nothing is left for {', '.join(empty)}; give more rows, or raise the limits or shares"
        )

    with stage.work():
        for name, rows in sets.items():
            stage.write_rows(f"{name}.jsonl", rows)
        counts = {name: len(rows) for name, rows in sets.items()}
        domains = {name: dict(Counter(row.domain for row in rows)) for name, rows in sets.items()}
        used, left_out = files.counts(sets.values(), split.withheld)
        split_counts = {"written": counts, "domains": domains, "rows_used": used, "left_out": left_out}
        stage.write_json("split.json", {**split_counts, "prompts_left_out": dict(prompts_left_out)})
        stage.closing.rows(used, left_out)
        stage.closing.figures(**counts)


class Files:
    """The rows of the user's files, each file read once, whatever it is named for; counts what becomes of them."""

    def __init__(self, config: PrepareDataConfig) -> None:
        self.config = config
        self.left_out: Counter[str] = Counter()
        self.pairs: dict[tuple[Identity, Domain | None], list[Preference]] = {}
        self.asked: list[Prompt] = []

    def prompts(self, sources: Sequence[str]) -> list[Prompt]:
        """The distinct prompts of some sources, each with an id that names its source."""
        rows = [
            replace(row, id=f"{source}#{row.id}", messages=with_system(self.config.system, row.messages))
            for source in sources
            for row in load_prompts(source, on_bad_row=self.config.on_bad_row, skipped=self.left_out)
        ]
        found = short_prompts(rows, self.config.max_prompt_characters, self.left_out)
        self.asked += found
        return found

    def preferences(self, sources: Sequence[str], domain: Domain | None) -> list[Preference]:
        """The rows of some sources, tagged with their domain (None: their own), which their ids begin with."""
        on_bad_row, skipped = self.config.on_bad_row, self.left_out
        keys = [(source_identity(source), domain) for source in sources]
        for source, key in zip(sources, keys, strict=True):
            if key not in self.pairs:
                self.pairs[key] = [
                    replace(row, id=f"{row.domain}/{row.id}", messages=with_system(self.config.system, row.messages))
                    for row in load_preferences(source, domain=domain, on_bad_row=on_bad_row, skipped=skipped)
                ]
        return [row for key in keys for row in self.pairs[key]]

    def counts(self, sets: Iterable[Sequence[Prompt | Preference]], withheld: Set[int]) -> tuple[int, dict[str, int]]:
        """How many rows stand in one of the sets or several, and why the others stand in none.

        withheld: numbers (`id`) of those that begin like a row that is held out.
        """
        used = {id(row) for rows in sets for row in rows}
        read = [*self.asked, *(row for rows in self.pairs.values() for row in rows)]
        why = Counter(self.left_out)
        for row in read:
            if id(row) in withheld:
                why["begins like a row that is held out"] += 1
            elif id(row) not in used:
                why[f"a {'prompt' if isinstance(row, Prompt) else 'pair'} more than asked for"] += 1
        return sum(id(row) in used for row in read), dict(+why)


class Split:
    """Deals rows to train, validation and test by their first user turn; counts what is withheld from training."""

    def __init__(
        self, config: PrepareDataConfig, given: dict[str, list[list[Prompt]]], test_preferences: Sequence[Preference]
    ) -> None:
        self.seed = config.seed
        self.withheld: set[int] = set()
        self.held_out = {first_turn(row.messages) for part in ("validation", "test") for row in given[part][0]}
        self.held_out |= {first_turn(row.messages) for row in test_preferences}
        validation = 0.0 if given["validation"][0] else config.validation_share
        test = 0.0 if given["test"][0] and (test_preferences or not config.has_preferences) else config.test_share
        self.shares = {"train": 1 - validation - test, "validation": validation, "test": test}

    def parts(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        """The rows of each part, in their order; without those that begin like one that is held out already."""
        parts: dict[str, list[Row]] = {part: [] for part in PARTS}
        for row in rows:
            turn = first_turn(row.messages)
            if turn in self.held_out:
                self.withheld.add(id(row))
            else:
                parts[part_of(turn, self.shares, self.seed)].append(row)
        return parts


def dealt_pairs(
    config: PrepareDataConfig,
    split: Split,
    preferences: Sequence[Preference],
    test_preferences: Sequence[Preference],
    files: Files,
) -> dict[str, Sequence[Preference]]:
    """Training and held-out pairs of the reward models, and of a referee, by the name of their file."""
    sets: dict[str, Sequence[Preference]] = {}
    most, most_held_out, seed = config.max_preferences, config.max_test_preferences, config.seed
    if preferences:
        parts = split.parts(preferences)
        held_out = [*parts["validation"], *parts["test"]]
        if test_preferences:
            split.withheld |= {id(row) for row in held_out}
            held_out = list(test_preferences)
        sets["preferences_train"] = draw_preferences(parts["train"], most, seed)
        sets["preferences_test"] = draw_preferences(held_out, most_held_out, seed)
    if config.referee_preferences:
        parts = split.parts(files.preferences(config.referee_preferences, "helpfulness"))
        others = without_those_of(sets.get("preferences_train", ()), parts["train"])
        sets["referee_train"] = draw_preferences(others, config.max_referee_preferences, seed)
        held_out = [*parts["validation"], *parts["test"]]
        sets["referee_test"] = draw_preferences(held_out, most_held_out, seed)
    return sets


def deal(files: Sequence[Sequence[Prompt]], config: PrepareDataConfig) -> dict[str, list[Prompt]]:
    """The training prompts of each version; a share is of first turns, so that no version sees another's."""
    together = [prompt for rows in files for prompt in rows]
    if config.rounds == "all":
        return dict.fromkeys(config.versions, together)
    if config.rounds == "files":
        return {version: list(rows) for version, rows in zip(config.versions, files, strict=True)}
    turns = sorted({first_turn(prompt.messages) for prompt in together})
    random.Random(config.seed).shuffle(turns)
    version_of = {turn: config.versions[number % len(config.versions)] for number, turn in enumerate(turns)}
    return {
        version: [prompt for prompt in together if version_of[first_turn(prompt.messages)] == version]
        for version in config.versions
    }


def draw_preferences(pairs: Sequence[Preference], most: int, seed: int) -> Sequence[Preference]:
    """At most `most` pairs of a domain (0: all), drawn at random, in their order."""
    if not most:
        return pairs
    kept: set[int] = set()
    for domain in get_args(Domain):
        of_domain = [number for number, row in enumerate(pairs) if row.domain == domain]
        kept.update(random.Random(seed).sample(of_domain, min(most, len(of_domain))))
    return [row for number, row in enumerate(pairs) if number in kept]


def with_system(system: str | None, messages: Conversation) -> Conversation:
    """The messages behind this system message, where they have none of their own."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def without_those_of(trained_on: Sequence[Preference], referee: Sequence[Preference]) -> list[Preference]:
    """The referee's pairs that are not among `trained_on`: it would agree with who was trained on them."""
    known = {pair_of(row) for row in trained_on}
    return [row for row in referee if pair_of(row) not in known]


def pair_of(row: Preference) -> tuple[str, str, str]:
    """What is compared, whoever judged it and wherever it stands."""
    return str(row.messages), row.chosen, row.rejected


if __name__ == "__main__":
    run_recipe(main, PrepareDataConfig)
