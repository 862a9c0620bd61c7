"""The helpfulness reward model.

Paper, section 3.2.2: it learns from all helpfulness rows, and as many again drawn uniformly from safety and open-source
rows (`rlhf.rewards.training.mixture`, other_share 0.5).
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


def train_helpfulness_model(
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
    """Train on all of `mixture`: the score alone, whatever safety labels the rows have."""
    return train_reward_model(
        policy, mixture, config, accelerator, log, safety_head=False, seed=seed, states=states, result=result
    )
