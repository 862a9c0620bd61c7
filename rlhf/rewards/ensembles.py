"""Several reward models as one reward function, which is wary of answers that they disagree about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.conversation import Conversation
from rlhf.objectives.reward import ensemble_reward
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.scoring import ask_all, name_of
from rlhf.rewards.suspicion import counts_of


class RewardEnsemble:
    """Mean of the members' raw scores, less their standard deviation times a weight: `ensemble_reward`.

    Args:
        members: reward functions on one scale: reward models trained alike, on other seeds or other parts of the data.
        uncertainty_weight: 0 is the plain mean.
    """

    def __init__(self, members: Sequence[RewardFunction], uncertainty_weight: float = 0.0) -> None:
        self.members = list(members)
        self.uncertainty_weight = uncertainty_weight

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        """(n,) float32 on the CPU, in the conversations' order."""
        return ensemble_reward(self.member_scores(conversations), self.uncertainty_weight)

    @property
    def too_long(self) -> list[bool]:
        """Of each conversation of the last call: a member had to cut it."""
        known = (getattr(member, "too_long", None) for member in self.members)
        own = [found for found in known if isinstance(found, (list, tuple)) and found]
        return [any(row) for row in zip(*own, strict=True)]

    @property
    def scored(self) -> int:
        """Conversations of all calls that the member scored which cut the most."""
        return max(self._counts, default=(0, 0, 0))[2]

    @property
    def cut(self) -> int:
        """How many of them it cut."""
        return max(self._counts, default=(0, 0, 0))[1]

    @property
    def _counts(self) -> list[tuple[float, int, int]]:
        """Of each member that knows: share cut, cut, scored."""
        return [(cut / scored, cut, scored) for scored, cut in counts_of(self.members) if scored]

    def disagreement(self, conversations: Sequence[Conversation]) -> Tensor:
        """(n,) float32: the standard deviation of the members' scores, in their unit."""
        return self.member_scores(conversations).std(0, correction=0)

    def member_scores(self, conversations: Sequence[Conversation]) -> Tensor:
        """(members, n) float32 raw scores.

        Raises:
            InputError: naming the member whose scores have another shape or are not finite.
        """
        names = (f"member {number} of the ensemble ({name_of(member)})" for number, member in enumerate(self.members))
        return torch.stack(ask_all(dict(zip(names, self.members, strict=True)), conversations))
