"""Direct Preference Optimization: fine-tune a policy on preferences without a reward model (arXiv 2305.18290).

Not in the Llama 2 paper: the baseline beside its rejection sampling and PPO, on the same preferences. The policy learns
to give the chosen answer a higher log-ratio to a frozen reference than the rejected one.

    accelerate launch recipes/dpo.py --config recipes/configs/embedded/dpo.yaml

Writes into the output folder: checkpoint/, dpo.json (held-out loss and accuracy of the implicit rewards, before and
after), metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Renderer
from rlhf.data.fields import DataSources
from rlhf.data.loading import load_preferences, sources_of
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.evaluation.policies.divergence import require_same_tokenizer
from rlhf.finetuning.config import FinetuneStageConfig, FinetuningConfig
from rlhf.models.checkpoint.fields import TrainedCheckpoint
from rlhf.models.policy import load_policy, save_policy
from rlhf.sampling.opening import load_weights, renderer_of
from rlhf.sampling.source import PolicySource, ScoringPolicy, named
from rlhf.stage import Stage, open_stage
from rlhf.training.accelerator import trained_dtype
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import RESUME, States
from rlhf.training.loop import TrainingResult, train
from rlhf.training.work import close_training, training_work

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf.finetuning.dpo import DPOPair


def dpo_finetuning() -> FinetuningConfig:
    """The rate and batch of the DPO paper's appendix B, one epoch; it warms up over 150 steps, here over a tenth."""
    optimizer = OptimizerConfig(learning_rate=1e-6, warmup_fraction=0.1, weight_decay=0.0, batch_size=64, epochs=1)
    return FinetuningConfig(train="last", on_bad_row="skip", optimizer=optimizer)


@dataclass(frozen=True, kw_only=True)
class DPOConfig(FinetuneStageConfig):
    """Direct Preference Optimization.

    Args:
        policy: checkpoint folder to start from.
        preferences: a file or hub name, or several; all their rows are trained on.
        test_preferences: held-out pairs to measure before and after.
        reference: what the log-ratios are against (docs/policies.md), with the policy's tokenizer; null: the policy as
            it starts.
        beta: weight of the KL to the reference: the lower, the further the policy may move.
        finetuning: length and schedule; a row of batch_size and micro_batch_size is a pair, and `train` must be last,
            as it is by default.
        seed: of the rows' order and dropout.
    """

    policy: TrainedCheckpoint
    preferences: DataSources
    test_preferences: DataSources = ()
    reference: ScoringPolicy | None = None
    beta: float = 0.1
    finetuning: FinetuningConfig = field(default_factory=dpo_finetuning)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("preferences", "test_preferences"):
            object.__setattr__(self, name, sources_of(getattr(self, name)))
        if not self.preferences:
            raise InputError("preferences: must name at least one file")
        if self.beta <= 0:
            raise InputError(f"beta: must be above 0, got {self.beta}")
        if self.finetuning.train != "last":
            raise InputError("finetuning.train: must be last; the earlier answers of a pair are its prompt")


def main(config: DPOConfig) -> None:
    stage = open_stage(config)
    bad = config.finetuning.on_bad_row
    rows = [row for source in config.preferences for row in load_preferences(source, on_bad_row=bad)]
    test = [row for source in config.test_preferences for row in load_preferences(source, on_bad_row=bad)]

    start = PolicySource(checkpoint=config.policy, quantization=config.quantization)
    renderer, against = renderer_of(start), named(config.reference) or start
    require_same_tokenizer(renderer.tokenizer, against.folder)
    with training_work(stage) as accelerator:
        # the reference's log-probabilities, once
        pairs, held_out = referenced_pairs(config, against, renderer, accelerator, rows, test)

        # the policy, trained from the start on what the pairs say beyond the reference
        result = train_policy(stage, config, pairs, renderer, accelerator)

        # what was saved, on the held-out pairs
        checkpoint = stage.folder / "checkpoint"
        measured = heldout_figures(config, held_out, checkpoint, renderer, accelerator) if held_out else {}
        record_training(stage, config, result, len(pairs), len(rows) - len(pairs), measured)


def train_policy(
    stage: Stage, config: DPOConfig, pairs: Sequence[DPOPair], renderer: Renderer, accelerator: Accelerator
) -> TrainingResult:
    """Load the policy, train it by the loss of DPO on pairs with the reference's log-probabilities, and save it."""
    from rlhf.finetuning.dpo import dpo_task
    from rlhf.finetuning.supervised import AnswerLogprobs

    policy = load_policy(config.policy, adapter=config.adapter, quantization=config.quantization)
    task = dpo_task(config.beta, renderer.pad_token_id)
    model = AnswerLogprobs(policy, packing=config.finetuning.packing)
    states = States(stage.folder / RESUME, config.finetuning.checkpoint_every)
    optimizer = config.finetuning.optimizer
    decode = renderer.tokenizer.decode
    result = train(
        model,
        pairs,
        task,
        optimizer,
        accelerator,
        stage.log,
        seed=config.seed,
        name="dpo",
        states=states,
        shown=lambda pair: {side: decode(getattr(pair, side).input_ids) for side in ("chosen", "rejected")},
    )
    result.cut = sum(pair.cut for pair in pairs)
    merge = config.adapter is None or config.adapter.merge
    save_policy(policy, renderer.tokenizer, stage.folder / "checkpoint", accelerator, merge=merge)
    return result


def record_training(
    stage: Stage, config: DPOConfig, result: TrainingResult, pairs: int, left_out: int, measured: dict[str, float]
) -> None:
    """Write dpo.json; the closing block says the most of it. `measured`: on held-out pairs, where there are any."""
    figures: dict[str, Any] = {"pairs": pairs, "left_out": left_out, "beta": config.beta}
    stage.write_json("dpo.json", figures | ({"test": measured} if measured else {}))
    close_training(stage, result, left_out={"too long": left_out})
    stage.closing.figures(**measured)


def referenced_pairs(
    config: DPOConfig,
    against: PolicySource,
    renderer: Renderer,
    accelerator: Accelerator,
    rows: Sequence[Preference],
    test: Sequence[Preference],
) -> tuple[list[DPOPair], list[DPOPair]]:
    """The pairs to train on and the held-out ones, rendered, with the log-probabilities of the reference."""
    from rlhf.finetuning.dpo import dpo_pairs, with_reference
    from rlhf.finetuning.supervised import training_renderer

    exact: dict[str, Any] = {"dtype": against.dtype or trained_dtype(accelerator)}  # as the policy's own at the start
    reference = load_weights(replace(against, **exact), accelerator.device)
    limit = training_renderer(renderer.tokenizer, reference, config.finetuning).max_length
    longest, too_long = limit or config.finetuning.max_length, config.finetuning.too_long

    def referenced(part: Sequence[Preference], name: str) -> list[DPOPair]:
        pairs = dpo_pairs(part, renderer, longest, too_long, name)
        return with_reference(pairs, reference, renderer.pad_token_id, accelerator)

    return referenced(rows, "preferences"), referenced(test, "test_preferences")


def heldout_figures(
    config: DPOConfig, pairs: Sequence[DPOPair], checkpoint: Path, renderer: Renderer, accelerator: Accelerator
) -> dict[str, float]:
    """Loss and accuracy of the implicit rewards on held-out pairs; without training they are 0.693 and one half.

    The checkpoint is whole on every process, however the training divided it.
    """
    import torch

    from rlhf.finetuning.dpo import with_reference
    from rlhf.objectives.dpo import dpo_loss, implicit_reward

    policy = load_policy(checkpoint, quantization=config.quantization, dtype=trained_dtype(accelerator))
    policy.to(accelerator.device)
    scored = with_reference(pairs, policy, renderer.pad_token_id, accelerator)  # it in the reference's place
    own, other = (torch.tensor([pair.reference for pair in part]) for part in (scored, pairs))
    chosen, rejected = implicit_reward(own.flatten(), other.flatten(), config.beta).view(-1, 2).unbind(1)
    accuracy = (0.5 + 0.5 * (chosen - rejected).sign()).mean()
    return {"test_loss": float(dpo_loss(chosen, rejected).mean()), "test_accuracy": float(accuracy)}


if __name__ == "__main__":
    run_recipe(main, DPOConfig)
