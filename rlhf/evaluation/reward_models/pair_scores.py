"""The scores of both answers of preference rows: computed once, read by every figure. Light: torch when called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlhf.data.rows import Preference
from rlhf.rewards.protocol import RewardFunction


class PairScore(NamedTuple):
    """Raw scores of both answers, and the safety head's logits (above 0: safe) where the model has such a head."""

    chosen: float
    rejected: float
    chosen_logit: float | None = None
    rejected_logit: float | None = None

    @property
    def difference(self) -> float:
        """By how much the chosen answer leads."""
        return self.chosen - self.rejected

    @property
    def hit(self) -> float:
        """1 where the chosen answer scores higher, 0 where the rejected one does, 0.5 for a tie."""
        return 0.5 + 0.5 * ((self.chosen > self.rejected) - (self.chosen < self.rejected))


def score_pairs(reward: RewardFunction, preferences: Sequence[Preference]) -> list[PairScore]:
    """One call of the reward function for all answers; a reward model with a safety head gives both from one pass.

    Raises:
        InputError: the reward function gave scores of wrong shape or not finite.
    """
    n = len(preferences)
    if not n:
        return []
    from rlhf.rewards.scoring import RewardModelFunction, check_scores, name_of

    conversations = [row.conversation(which) for which in ("chosen", "rejected") for row in preferences]
    output = reward.outputs(conversations) if isinstance(reward, RewardModelFunction) else None
    answer = reward(conversations) if output is None else output.score
    labels = None if output is None else output.safety_logit
    logits: list[float] | list[None] = [None] * (2 * n) if labels is None else labels.tolist()
    scores = check_scores(answer, 2 * n, name_of(reward)).tolist()
    return [PairScore(scores[i], scores[n + i], logits[i], logits[n + i]) for i in range(n)]
