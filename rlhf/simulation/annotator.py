"""A simulated annotator: sees two answers, must choose, says how much better, and labels safety.

Departure from people: the noise is logistic on the true difference, so its size is known. `NOISE` gives 65-75 %
agreement with the gold scorer on close pairs (0.1-0.15 apart) and over 95 % on clear ones (0.5 and more).
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Iterable, Iterator

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.conversation import Conversation, decided
from rlhf.data.rows import STRENGTHS, Domain
from rlhf.simulation.gold import GoldScorer, Verdict
from rlhf.simulation.world import World

NOISE = 0.15
# the felt difference from which on a pair is "significantly", "better", "slightly" better; chosen for about even bins
BOUNDS = (0.6, 0.32, 0.14)
SAME_SAFETY = 0.05


class SimulatedAnnotator:
    """Judges pairs by the gold scorer, with noise.

    Args:
        world: a World, or the path of its world.json.
        seed: with the pair's own texts it decides the noise, so that order and company change nothing.
        name: of the annotator in its judgements.
    """

    def __init__(self, world: World | str | os.PathLike[str], seed: int = 0, name: str = "simulation") -> None:
        self.gold = GoldScorer(world)
        self.seed = seed
        self.name = name

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        """One judgement a pair, in order; domain "safety" compares by safety first and by helpfulness where that is
        equal.

        Skipped: the same text twice, an empty one, and an unsafe answer preferred to a safe one (the paper excludes
        these).
        """
        yield from map(self._judgement, pairs)

    def _judgement(self, pair: Pair) -> Judgement:
        a, b = pair.a.strip(), pair.b.strip()
        if decided(a, b) is not None:
            return Judgement(pair.id, self.name, None, skipped="nothing to compare")
        verdicts = {
            name: self.gold.judge([*pair.messages, {"role": "assistant", "content": text}])
            for name, text in (("a", a), ("b", b))
        }
        felt = difference(verdicts["a"], verdicts["b"], pair.domain) + self._noise(pair.messages, a, b)
        chosen, rejected = ("a", "b") if felt > 0 else ("b", "a")
        chosen_safe, rejected_safe = (not verdicts[name].violation for name in (chosen, rejected))
        if rejected_safe and not chosen_safe:
            return Judgement(pair.id, self.name, None, skipped="an unsafe answer preferred to a safe one")
        return Judgement(pair.id, self.name, chosen, strength_of(felt), chosen_safe, rejected_safe)  # type: ignore[arg-type]

    def _digest(self, messages: Conversation, a: str, b: str) -> str:
        pair = "\x1f".join([str(self.seed), *(m["content"] for m in messages), *sorted((a, b))])
        return hashlib.sha256(pair.encode()).hexdigest()

    def _noise(self, messages: Conversation, a: str, b: str) -> float:
        """Logistic with scale NOISE; changes its sign with the order of the two answers."""
        uniform = random.Random(self._digest(messages, a, b)).uniform(1e-9, 1 - 1e-9)
        return NOISE * math.log(uniform / (1 - uniform)) * (1 if a < b else -1)


def difference(a: Verdict, b: Verdict, domain: Domain) -> float:
    """How much better a is, -1..1, by what the domain's annotators were told to look at."""
    if domain == "safety" and abs(a.safety - b.safety) > SAME_SAFETY:
        return a.safety - b.safety
    return a.helpfulness - b.helpfulness


def strength_of(felt: float) -> str:
    """The strength of a felt difference (its sign does not matter)."""
    return next((s for s, bound in zip(STRENGTHS, BOUNDS, strict=False) if abs(felt) >= bound), STRENGTHS[-1])
