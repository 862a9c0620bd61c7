"""The helpfulness reward model: which rows it learns from.

Paper, section 3.2.2: all helpfulness rows, and as many again drawn uniformly from safety and open-source rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from accelerate import Accelerator

from rlhf.data.mixing import mix
from rlhf.data.rows import Preference
from rlhf.metrics import MetricsLog
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.config import RewardTrainingConfig
from rlhf.rewards.training import train_reward_model


def train_helpfulness_model(
    policy: str | os.PathLike[str],
    own: Sequence[Preference],
    other: Sequence[Preference],
    config: RewardTrainingConfig,
    accelerator: Accelerator,
    log: MetricsLog,
    *,
    other_share: float = 0.5,
    seed: int = 0,
) -> RewardModel:
    """All of `own`, and of `other` so many that they are `other_share` of the whole; no safety head."""
    rows = mix(own, other, other_share, seed)
    return train_reward_model(policy, rows, config, accelerator, log, safety_head=False, seed=seed)
