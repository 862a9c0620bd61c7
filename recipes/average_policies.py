"""Average policies' weights: one policy from several that were trained from one start (WARP, arXiv 2406.16768).

Not in the Llama 2 paper. Policies that went different ways from one start, by rejection sampling, PPO or DPO, by other
rows or other rates, often have a mean that is better than each of them, and that lost less of what the start knew. The
mean costs no training and no more than one policy to run.

    python recipes/average_policies.py --config recipes/configs/embedded/average_policies.yaml

Writes into the output folder: checkpoint/.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.configuration import run_recipe
from rlhf.errors import InputError
from rlhf.models.averaging import average_checkpoints
from rlhf.models.checkpoint.fields import Checkpoint
from rlhf.models.checkpoint.folder import require_policy
from rlhf.stage import StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class AveragePoliciesConfig(StageConfig):
    """Averaging of policies.

    Args:
        checkpoints: two or more policies of one architecture with one tokenizer, trained from one start; all whole, or
            all adapters over one base.
        weights: one a checkpoint, above 0; they are divided by their sum. null: all the same.
        rank: of the mean of adapters, the nearest of that rank; null: the sum of theirs, which loses nothing.
    """

    checkpoints: tuple[Checkpoint, ...]
    weights: tuple[float, ...] | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if (given := len(self.checkpoints)) < 2:
            raise InputError(f"checkpoints: an average takes two or more, got {given}; name another, or leave it out")
        if self.weights is not None and (len(self.weights) != given or min(self.weights) <= 0):
            raise InputError(f"weights: must be {given} numbers above 0, one a checkpoint, got {list(self.weights)}")


def main(config: AveragePoliciesConfig) -> None:
    stage = open_stage(config, one_process=True)
    for checkpoint in config.checkpoints:
        require_policy(checkpoint)

    with stage.work() as folder:
        average_checkpoints(config.checkpoints, folder / "checkpoint", weights=config.weights, rank=config.rank)


if __name__ == "__main__":
    run_recipe(main, AveragePoliciesConfig)
