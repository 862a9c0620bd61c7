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
from rlhf.rewards.training.kinds import REWARD_KINDS
from rlhf.rewards.training.stage import RewardStageConfig, run_reward_stage


@dataclass(frozen=True)
class HelpfulnessRewardConfig(RewardStageConfig):
    """The helpfulness reward model: half of the mixture are other rows."""

    other_share: float = REWARD_KINDS["helpfulness"].other_share


def main(config: HelpfulnessRewardConfig) -> None:
    run_reward_stage("helpfulness", config)


if __name__ == "__main__":
    run_recipe(main, HelpfulnessRewardConfig)
