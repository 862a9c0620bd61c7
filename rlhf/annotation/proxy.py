"""A reward in the place of a person: a proxy annotator (RLHF Workflow, arXiv 2405.07863, section 3.1)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from rlhf.annotation.protocol import Choice, Judgement, Pair
from rlhf.conversation import decided
from rlhf.data.rows import STRENGTHS, Domain, Strength
from rlhf.errors import InputError
from rlhf.rewards.specs import reward_files
from rlhf.stage import digest

if TYPE_CHECKING:
    from rlhf.conversation import Conversation
    from rlhf.rewards.protocol import RewardFunction

BOUNDS = (0.95, 0.80, 0.65)
"""Probabilities of the choice, by Bradley and Terry, from which on it is significantly, better, slightly better."""


class Proxy:
    """Chooses the answer with the higher reward.

    With `noise` the choice is drawn: logistic noise of that scale is added to the difference d of the two rewards, so
    that a is chosen with probability sigmoid(d / noise); at 1 this is the Bradley-Terry model of the rewards. The
    strength says how likely the choice is by the felt difference, sigmoid(|d + noise|), with `BOUNDS`.

    Args:
        reward: a reward-model folder, `package.module:attribute` of a reward function, or the file of an ensemble.
        safety: the same, for pairs of domain safety; None: `reward` judges them too.
        noise: scale of the noise, in rewards; 0: none.
        tie: pairs whose rewards differ by no more are skipped as ties.
        safe_above: answers whose `safety` reward is above this are labelled safe, the others unsafe; None: no labels.
            An unsafe choice over a safe answer is skipped.
        rows: pairs scored at a time.
        seed: with a pair's id it decides its noise, so that order and company change nothing.
        name: of the annotator in its judgements.
    """

    def __init__(
        self,
        reward: str,
        safety: str | None = None,
        noise: float = 0.0,
        tie: float = 0.0,
        safe_above: float | None = None,
        rows: int = 64,
        seed: int = 0,
        name: str = "proxy",
    ) -> None:
        for field, value in (("noise", noise), ("tie", tie)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"annotator_options.{field}: must be 0 or above, got {value!r}")
        if not isinstance(rows, int) or rows < 1:
            raise InputError(f"annotator_options.rows: must be at least 1, got {rows!r}")
        if safe_above is not None and not -math.inf < safe_above < math.inf:
            raise InputError(f"annotator_options.safe_above: must be a number, got {safe_above!r}")
        if safe_above is not None and safety is None:
            raise InputError("annotator_options.safe_above: the labels are of a safety reward; name one with safety")
        self._files = reward_files(reward=reward, safety=safety)
        self.reward, self.safety, self.noise, self.tie, self.safe_above = reward, safety, noise, tie, safe_above
        self.rows, self.seed, self.name = rows, seed, name
        self.suspicious: list[str] = []
        """What looks wrong about the scores of the last `judge`, a sentence each."""

    @property
    def asked(self) -> str:
        """What decides the judgements: the rewards and what their files hold, noise, ties, labels, seed."""
        names = ("reward", "safety", "noise", "tie", "safe_above", "seed")
        files = {field: digest(path) for field, path in self._files.items()}
        return json.dumps({"annotator": "proxy", **{name: getattr(self, name) for name in names}, "files": files})

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        """One judgement a pair, in order.

        Raises:
            InputError: a reward gives anything but one finite score for each conversation.
        """
        from rlhf.rewards.loading import load_reward
        from rlhf.rewards.suspicion import suspicious_scoring

        reward = load_reward(self.reward)
        safety = reward if self.safety is None else load_reward(self.safety)
        names = [f"annotator_options.reward: {self.reward}"] * 2
        if self.safety is not None:
            names[1] = f"annotator_options.safety: {self.safety}"
        waiting = iter(pairs)
        while batch := list(islice(waiting, self.rows)):
            told = [pair for pair in batch if decided(pair.a, pair.b) is None]
            of_domain: dict[Domain, tuple[str, RewardFunction]] = {
                "helpfulness": (names[0], reward),
                "safety": (names[1], safety),
            }
            scores: dict[str, tuple[float, float]] = {}
            for domain, (named, function) in of_domain.items():
                scores |= _scores(named, function, [pair for pair in told if pair.domain == domain])
            labels = {} if self.safe_above is None else _scores(names[1], safety, told)
            for pair in batch:
                yield self._judgement(pair, scores.get(pair.id), labels.get(pair.id))
        rewards = {"reward": reward, **({} if safety is reward else {"safety": safety})}
        self.suspicious = suspicious_scoring(**{f"annotator_options.{n}": f for n, f in rewards.items()})

    def _judgement(
        self, pair: Pair, scores: tuple[float, float] | None, safety: tuple[float, float] | None
    ) -> Judgement:
        if scores is None:
            return Judgement(pair.id, self.name, None, skipped="nothing to compare")
        difference = scores[0] - scores[1]
        if abs(difference) <= self.tie:
            return Judgement(pair.id, self.name, None, skipped="a tie")
        felt = difference
        if self.noise:
            uniform = random.Random(f"{self.seed} {pair.id}").uniform(1e-9, 1 - 1e-9)
            felt += self.noise * math.log(uniform / (1 - uniform))
        choice: Choice = "a" if felt > 0 else "b"
        chosen_safe = rejected_safe = None
        if safety is not None and self.safe_above is not None:
            chosen, rejected = safety if choice == "a" else safety[::-1]
            chosen_safe, rejected_safe = chosen > self.safe_above, rejected > self.safe_above
            if rejected_safe and not chosen_safe:
                return Judgement(pair.id, self.name, None, skipped="an unsafe answer preferred to a safe one")
        return Judgement(pair.id, self.name, choice, strength_of(felt), chosen_safe, rejected_safe)


def strength_of(felt: float) -> Strength:
    """The strength of a choice with the felt difference of rewards, by `BOUNDS`; its sign does not matter."""
    likely = 1 / (1 + math.exp(-min(abs(felt), 700.0)))
    places = (place for place, bound in enumerate(BOUNDS) if likely >= bound)
    found: Strength = STRENGTHS[next(places, len(BOUNDS))]  # type: ignore[assignment]
    return found


def _scores(who: str, reward: RewardFunction, pairs: list[Pair]) -> dict[str, tuple[float, float]]:
    """A pair's id -> the rewards of a and b."""
    from rlhf.rewards.scoring import check_scores

    talks: list[Conversation] = [
        [*pair.messages, {"role": "assistant", "content": text}] for pair in pairs for text in (pair.a, pair.b)
    ]
    if not talks:
        return {}
    values = check_scores(reward(talks), len(talks), who).tolist()
    return {pair.id: (values[2 * i], values[2 * i + 1]) for i, pair in enumerate(pairs)}
