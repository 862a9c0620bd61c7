"""Train the helpfulness reward model (Llama 2 paper, section 3.2.2).

It starts from the chat checkpoint with a new scalar head, and learns which of two answers people chose: ranking loss
with a margin by how much better it was. It reads all helpfulness preferences and as many again of other kinds.

    accelerate launch recipes/helpfulness_reward.py --config recipes/configs/embedded/helpfulness_reward.yaml

Writes into the output folder: checkpoint/ (a sequence classifier with one label), metrics.jsonl, mixture.json (pairs by
source, and what was skipped), accuracy.json (held-out accuracy overall, by strength and on the other domain, and what
counting characters would reach).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.configuration import run_recipe
from rlhf.rewards.training.mixture import OTHER_SHARE
from rlhf.rewards.training.stage import RewardStageConfig, open_reward_stage, run_stage


@dataclass(frozen=True)
class HelpfulnessRewardConfig(RewardStageConfig):
    """The helpfulness reward model: half of the mixture are other rows."""

    other_share: float = OTHER_SHARE["helpfulness"]


def main(config: HelpfulnessRewardConfig) -> None:
    stage, rows = open_reward_stage("helpfulness", config)

    from rlhf.rewards.training.helpfulness import train_helpfulness_model

    run_stage(stage, config, rows, train_helpfulness_model)


if __name__ == "__main__":
    run_recipe(main, HelpfulnessRewardConfig)
