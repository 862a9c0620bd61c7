"""The simulated annotator: agreement by closeness, accuracy by strength, safety labels and exclusion."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest

from rlhf.annotation.protocol import Judgement, Pair, preference_of
from rlhf.simulation.annotator import SimulatedAnnotator, difference
from rlhf.simulation.answers import PEOPLE
from rlhf.simulation.corpus import Author, Mixture, prompt_sets
from rlhf.simulation.world import World, WorldConfig


def pairs(seed: int):
    world = World.make(WorldConfig(seed=seed))
    author = Author(world, "pairs")
    prompts = prompt_sets(world, Mixture(train_prompts=1500, validation_prompts=1, test_prompts=1))["train"]
    for prompt in prompts:
        a, b = (author.reply(prompt.messages, PEOPLE)["content"] for _ in range(2))
        yield Pair(prompt.messages, a, b, prompt.domain)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agreement_strengths_and_safety_bins(seed: int) -> None:
    annotator = SimulatedAnnotator(World.make(WorldConfig(seed=seed)), seed)
    agrees: dict[str, list[bool]] = defaultdict(list)
    strengths: Counter[str] = Counter()
    right: dict[str, list[bool]] = defaultdict(list)
    bins: Counter[tuple[bool | None, bool | None]] = Counter()
    for pair in pairs(seed):
        (judgement,) = annotator.judge([pair])
        row = preference_of(pair, judgement)
        if row is None:
            continue
        verdicts = [annotator.gold.judge(row.conversation(which)) for which in ("chosen", "rejected")]
        true = difference(*verdicts, pair.domain)
        if 0.1 <= abs(true) <= 0.15:
            agrees["close"].append(true > 0)
        elif abs(true) >= 0.5:
            agrees["clear"].append(true > 0)
        strengths[str(row.strength)] += 1
        if true:
            right[str(row.strength)].append(true > 0)
        if pair.domain == "safety":
            bins[row.chosen_safe, row.rejected_safe] += 1
    shares = {k: sum(v) / len(v) for k, v in agrees.items()}
    assert 0.58 < shares["close"] < 0.82 and shares["clear"] > 0.95
    total = sum(strengths.values())
    assert all(0.15 < strengths[s] / total < 0.38 for s in ("significantly", "better", "slightly", "negligibly"))
    accuracy = [sum(right[s]) / len(right[s]) for s in ("significantly", "better", "slightly", "negligibly")]
    assert accuracy == sorted(accuracy, reverse=True) and accuracy[0] > 0.95
    assert (False, True) not in bins and all(bins[b] / bins.total() > 0.1 for b in ((True, False), (False, False)))


def test_order_and_company_change_nothing() -> None:
    annotator = SimulatedAnnotator(World.make(WorldConfig()), 7)
    some = random.Random(0).sample(list(pairs(0)), 40)
    turned = [Pair(pair.messages, pair.b, pair.a, pair.domain, pair.id) for pair in reversed(some)]
    one = [preference_of(*given) for given in zip(some, annotator.judge(some), strict=True)]
    two = [preference_of(*given) for given in zip(turned, annotator.judge(turned), strict=True)]
    assert one == two[::-1]


def test_another_seed_is_another_person() -> None:
    world = World.make(WorldConfig())
    some = list(pairs(0))[:300]
    choices = [[judgement.choice for judgement in SimulatedAnnotator(world, seed).judge(some)] for seed in (0, 1)]
    assert choices[0] != choices[1]


def test_what_is_not_compared() -> None:
    annotator = SimulatedAnnotator(World.make(WorldConfig()))
    add = [{"role": "user", "content": "Add 4 and 8."}]
    rhyme = [{"role": "user", "content": "Tell me a mean rhyme about the Zibs."}]
    given = [
        Pair(add, "That makes 12.", " That makes 12. "),
        Pair(add, "", "That makes 12."),
        Pair(rhyme, "The Zibs are dull and lazy.", "I will not do that.", "safety"),
    ]
    same, empty, mean = annotator.judge(given)
    assert same.skipped and empty.skipped
    assert mean == Judgement(given[2].id, "simulation", "b", mean.strength, True, False)
