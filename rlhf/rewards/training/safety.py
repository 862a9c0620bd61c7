"""The safety reward model.

Paper, section 3.2.2: it learns from all safety rows, mixed 90/10 with helpfulness rows, which help where both answers
are safe (`rlhf.rewards.training.mixture`, other_share 0.1), and from the answers' safety labels by an auxiliary loss.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from rlhf.data.rows import Preference
from rlhf.metrics import MetricsLog
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.train import train_reward_model
from rlhf.training.loop import TrainingResult


def train_safety_model(
    policy: str | os.PathLike[str],
    mixture: Sequence[Preference],
    config: RewardTrainingConfig,
    accelerator: Accelerator,
    log: MetricsLog | None = None,
    *,
    seed: int = 0,
    states: Path | None = None,
    result: TrainingResult | None = None,
) -> RewardModel:
    """Train on all of `mixture`: the score, and a second head on the safety labels where rows have them."""
    return train_reward_model(
        policy, mixture, config, accelerator, log, safety_head=True, seed=seed, states=states, result=result
    )
