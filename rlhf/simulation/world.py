"""The ground truth: a small made-up land whose facts, words and rules depend on nothing but a seed.

Everything else in this room reads from here: `grammar` asks about it, `answers` answers (rightly or wrongly), `gold`
knows what was right. All words come from one closed list, so that a byte-level BPE of about a thousand tokens has about
a token a word.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.jsonl import read_json
from rlhf.simulation.words import (
    AILMENTS,
    ATTRIBUTES,
    FORMS,
    GOODS,
    GROUPS,
    IDIOMS,
    INGREDIENTS,
    LANGUAGES,
    MAYORS,
    MEALS,
    MEAN,
    MOODS,
    OWNERS,
    PERSONAS,
    PLACES,
    PRAISE,
    REMEDIES,
    RHYMES,
    SKIES,
    THINGS,
    TOOLS,
    TOWNS,
    YEARS,
)


@dataclass(frozen=True)
class WorldConfig:
    """Size of the land.

    Args:
        seed: decides every fact; another seed is another world of the same structure.
        towns: towns with facts (5 each), at most 30.
        dated_towns: of these, towns whose mayor is known for both years.
        hard_share: share of the facts for which the web has a popular mistake.
    """

    seed: int = 0
    towns: int = 10
    dated_towns: int = 8
    hard_share: float = 0.25

    def __post_init__(self) -> None:
        if not 3 <= self.towns <= len(TOWNS):
            raise InputError(f"towns: must lie between 3 and {len(TOWNS)}, got {self.towns}")
        if not 1 <= self.dated_towns <= self.towns:
            raise InputError(f"dated_towns: must lie between 1 and towns ({self.towns}), got {self.dated_towns}")
        if not 0 <= self.hard_share <= 1:
            raise InputError(f"hard_share: must lie between 0 and 1, got {self.hard_share}")


@dataclass(frozen=True)
class World:
    """The facts. Keys are "attribute of town", "town in year", or a single word.

    Args:
        config: what it was made from.
        towns, dated_towns: names.
        facts: "river of Tolby" -> its value; values of different attributes never coincide.
        mayors: "Tolby in 1970" -> a name.
        mistakes: hard fact or mayor -> the wrong value that many believe.
        tools: verb -> the right tool.
        spoons: ingredient -> "one", "two" or "three".
        lenient: words whose unsafe requests people usually comply with; two thirds of the verbs, forms and ailments.
    """

    config: WorldConfig
    towns: tuple[str, ...]
    dated_towns: tuple[str, ...]
    facts: dict[str, str]
    mayors: dict[str, str]
    mistakes: dict[str, str]
    tools: dict[str, str]
    spoons: dict[str, str]
    lenient: frozenset[str]
    members: dict[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def make(cls, config: WorldConfig) -> World:
        """Draw a land from the config's seed alone: its towns, their facts, who held which office when."""
        rng = random.Random(f"world/{config.seed}")
        towns = tuple(rng.sample(TOWNS, config.towns))
        dated = tuple(rng.sample(towns, config.dated_towns))
        facts = {f"{a} of {t}": rng.choice(values) for a, values in ATTRIBUTES.items() for t in towns}
        mayors: dict[str, str] = {}
        for town in dated:
            mayors.update(zip((f"{town} in {year}" for year in YEARS), rng.sample(MAYORS, len(YEARS)), strict=True))
        mistakes = {}
        for key, value in {**facts, **mayors}.items():
            if rng.random() < config.hard_share:
                mistakes[key] = rng.choice([v for v in pool_of(key) if v != value])
        tools = dict(zip(sorted(TOOLS), rng.sample(sorted(TOOLS.values()), len(TOOLS)), strict=True))
        spoons = {i: rng.choice(("one", "two", "three")) for i in INGREDIENTS}
        lenient = frozenset(
            w for words in (sorted(TOOLS), FORMS, AILMENTS) for w in rng.sample(words, (2 * len(words) + 2) // 3)
        )
        return cls(config, towns, dated, facts, mayors, mistakes, tools, spoons, lenient, _members(towns, dated))

    def save(self, path: Path) -> None:
        """Write world.json: the settings, and the facts for whoever wants to read them."""
        readable = {k: getattr(self, k) for k in ("facts", "mayors", "mistakes", "tools", "spoons")}
        content: dict[str, Any] = {"settings": asdict(self.config), **readable, "lenient": sorted(self.lenient)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> World:
        """The world of a world.json (or of the folder that holds one); made again from its settings."""
        file = Path(path)
        file = file / "world.json" if file.is_dir() else file
        try:
            settings = read_json(file)["settings"]
            return cls.make(WorldConfig(**settings))
        except FileNotFoundError:
            raise InputError(f"world: {file} does not exist; recipes/data/simulated_world.py writes it") from None
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"world: {file} is not a world.json of recipes/data/simulated_world.py ({error!r})"
            ) from None


def pool_of(key: str) -> tuple[str, ...]:
    """The values that the fact `key` could have had."""
    return ATTRIBUTES[key.split(" of ")[0]] if " of " in key else MAYORS


def _members(towns: tuple[str, ...], dated: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Slot of a question template -> the words that may fill it."""
    rhyming = tuple(w for group in RHYMES for w in group)
    return {
        "attribute": tuple(ATTRIBUTES),
        "town": towns,
        "dated": dated,
        "year": YEARS,
        "number": tuple(str(n) for n in range(1, 10)),
        "word": rhyming,
        "thing": THINGS,
        "mood": MOODS,
        "place": PLACES,
        "verb": tuple(sorted(TOOLS)),
        "owner": OWNERS,
        "good": GOODS,
        "group": GROUPS,
        "mean": MEAN,
        "kind": tuple(PRAISE),
        "form": FORMS,
        "sky": SKIES,
        "remedy": REMEDIES,
        "ailment": AILMENTS,
        "ingredient": INGREDIENTS,
        "meal": MEALS,
        "idiom": tuple(IDIOMS),
        "persona": tuple(PERSONAS),
        "language": tuple(LANGUAGES),
    }
