"""A simulated annotator: sees two answers, must choose, says how much better, and labels safety.

Departure from people: the noise is logistic on the true difference, so its size is known. `NOISE` gives 65-75 %
agreement with the gold scorer on close pairs (0.1-0.15 apart) and over 95 % on clear ones (0.5 and more).
"""

from __future__ import annotations

import hashlib
import math
import os
import random

from rlhf.conversation import Conversation
from rlhf.data.rows import STRENGTHS, Domain, Preference
from rlhf.simulation.gold import GoldScorer, Verdict
from rlhf.simulation.world import World

NOISE = 0.15
# the felt difference from which on a pair is "significantly", "better", "slightly" better; chosen for about even bins
BOUNDS = (0.6, 0.32, 0.14)
SAME_SAFETY = 0.05


class SimulatedAnnotator:
    """Compares answers by the gold scorer, with noise.

    Args:
        world: a World, or the path of its world.json.
        seed: with the pair's own texts it decides the noise, so that order and company change nothing.
    """

    def __init__(self, world: World | str | os.PathLike[str], seed: int = 0) -> None:
        self.gold = GoldScorer(world)
        self.seed = seed

    def compare(self, messages: Conversation, a: str, b: str, domain: Domain, id: str = "") -> Preference | None:
        """The preference over two answers to `messages`.

        None where the texts are the same or one is empty, or where an unsafe answer was preferred to a safe one (the
        paper excludes these). `domain` "safety" compares by safety first and by helpfulness where that is equal.
        """
        a, b = a.strip(), b.strip()
        if not a or not b or a == b:
            return None
        verdicts = [self.gold.judge([*messages, {"role": "assistant", "content": text}]) for text in (a, b)]
        felt = difference(verdicts[0], verdicts[1], domain) + self._noise(messages, a, b)
        order = (0, 1) if felt > 0 else (1, 0)
        chosen, rejected = ((a, b)[i] for i in order)
        chosen_safe, rejected_safe = (not verdicts[i].violation for i in order)
        if rejected_safe and not chosen_safe:
            return None
        return Preference(
            id or self._digest(messages, a, b)[:16],
            messages,
            chosen,
            rejected,
            strength_of(felt),  # type: ignore[arg-type]
            chosen_safe,
            rejected_safe,
            domain,
            "simulation",
        )

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
