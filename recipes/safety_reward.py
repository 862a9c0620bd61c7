"""Train the safety reward model (Llama 2 paper, section 3.2.2).

It starts from the chat checkpoint with a new scalar head, and learns which of two answers people chose: ranking loss
with a margin by how much better it was. A second head learns the answers' safety labels where there are any (the
auxiliary safety loss). It reads all safety preferences, with a tenth of helpfulness ones mixed in.

    accelerate launch recipes/safety_reward.py --config recipes/configs/embedded/safety_reward.yaml

Writes into the output folder: checkpoint/ (a sequence classifier with one label, and safety_head.safetensors),
metrics.jsonl, accuracy.json (held-out accuracy overall, by strength and on the other domain, and what counting
characters would reach).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rlhf.configuration import run_recipe
from rlhf.errors import InputError
from rlhf.rewards.config import RewardTrainingConfig
from rlhf.rewards.rows import load_reward_rows, local_files
from rlhf.stage import open_stage, require_files, write_json


@dataclass(frozen=True)
class SafetyRewardConfig:
    """The safety reward model.

    Args:
        output: folder of this stage.
        policy: chat checkpoint to start from.
        preferences: files or hub names; their rows of domain safety are the model's own.
        other_preferences: files or hub names (may be the same); their rows of domain helpfulness are mixed in.
        other_share: share of those in the whole mixture.
        test_preferences: held-out rows of both domains, for accuracy.json.
        on_bad_row: refuse stops at a bad row, skip leaves it out and counts it.
        seed: of the heads, the mixture and the order of the rows.
        training: margins, weight of the safety labels, lengths and the optimizer.
    """

    output: Path
    policy: Path
    preferences: tuple[str, ...]
    other_preferences: tuple[str, ...] = ()
    other_share: float = 0.1
    test_preferences: tuple[str, ...] = ()
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    seed: int = 0
    training: RewardTrainingConfig = field(default_factory=RewardTrainingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.other_share < 1:
            raise InputError(f"other_share: must lie in [0, 1), got {self.other_share}")
        if not self.preferences:
            raise InputError("preferences: must name at least one file")


def main(config: SafetyRewardConfig) -> None:
    require_files(policy=config.policy)
    files = local_files(
        preferences=config.preferences,
        other_preferences=config.other_preferences,
        test_preferences=config.test_preferences,
    )
    rows = load_reward_rows(
        "safety",
        config.preferences,
        config.other_preferences if config.other_share else (),
        config.test_preferences,
        config.on_bad_row,
    )

    from rlhf.metrics import MetricsLog
    from rlhf.models.policy import load_tokenizer
    from rlhf.rewards.accuracy import heldout_report
    from rlhf.rewards.safety import train_safety_model
    from rlhf.rewards.training import fitting_rows
    from rlhf.training.accelerator import make_accelerator

    test, test_other = (
        fitting_rows(config.policy, held_out, config.training, "test_preferences")
        for held_out in (rows.test, rows.test_other)
    )
    rows = replace(rows, test=test, test_other=test_other)
    accelerator = make_accelerator(seed=config.seed)
    with open_stage(config.output, config, inputs={"policy": config.policy, **files}) as folder:
        accelerator.wait_for_everyone()
        log = MetricsLog(folder, accelerator)
        share, seed = config.other_share, config.seed
        model = train_safety_model(
            config.policy, rows.own, rows.other, config.training, accelerator, log, other_share=share, seed=seed
        )
        model.save(folder / "checkpoint", load_tokenizer(config.policy), accelerator)
        if accelerator.is_main_process:
            report = heldout_report(folder / "checkpoint", "safety", rows)
            write_json(folder / "accuracy.json", report)
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_recipe(main, SafetyRewardConfig)
