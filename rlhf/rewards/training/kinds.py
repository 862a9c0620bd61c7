"""The two reward models (paper, section 3.2.2), and all that differs between their trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf.data.rows import Domain


@dataclass(frozen=True)
class RewardKind:
    """What is a reward model's own.

    Args:
        other_share: share of other rows in its whole mixture (`rlhf.rewards.training.mixture`).
        safety_head: a second head learns the answers' safety labels, where rows have them, by an auxiliary loss; else
            it learns the score alone, whatever labels the rows have.
    """

    other_share: float
    safety_head: bool


REWARD_KINDS: Mapping[Domain, RewardKind] = {
    # all helpfulness rows, and as many again drawn uniformly from safety and open-source rows
    "helpfulness": RewardKind(other_share=0.5, safety_head=False),
    # all safety rows, mixed 90/10 with helpfulness rows, which help where both answers are safe
    "safety": RewardKind(other_share=0.1, safety_head=True),
}
