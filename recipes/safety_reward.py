"""Train the safety reward model (Llama 2 paper, section 3.2.2).

It starts from the chat checkpoint with a new scalar head, and learns which of two answers people chose: ranking loss
with a margin by how much better it was. A second head learns the answers' safety labels where there are any (the
auxiliary safety loss). It reads all safety preferences, with a tenth of helpfulness ones mixed in.

    accelerate launch recipes/safety_reward.py --config recipes/configs/embedded/safety_reward.yaml

Writes into the output folder: checkpoint/ (a sequence classifier with one label, and safety_head.safetensors),
metrics.jsonl, mixture.json (pairs by source, and what was skipped), accuracy.json (held-out accuracy overall, by
strength and on the other domain, and what counting characters would reach).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.configuration import run_recipe
from rlhf.rewards.training.kinds import REWARD_KINDS
from rlhf.rewards.training.stage import RewardStageConfig, run_reward_stage


@dataclass(frozen=True)
class SafetyRewardConfig(RewardStageConfig):
    """The safety reward model: a tenth of the mixture are other rows."""

    other_share: float = REWARD_KINDS["safety"].other_share


def main(config: SafetyRewardConfig) -> None:
    run_reward_stage("safety", config)


if __name__ == "__main__":
    run_recipe(main, SafetyRewardConfig)
