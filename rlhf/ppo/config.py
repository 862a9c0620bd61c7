"""Settings of PPO. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf.errors import InputError
from rlhf.ppo.estimators import find_estimator
from rlhf.stage import Effect
from rlhf.training.config import OptimizerConfig


def paper_optimizer() -> OptimizerConfig:
    """AdamW as in the paper's section 3.2.3: constant rate, minibatches of 64, each rollout seen once."""
    return OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup_fraction=0.0, batch_size=64)


@dataclass(frozen=True)
class PPOConfig:
    """PPO with two reward models (Llama 2 paper, section 3.2.3; decisions 34 to 42 where it is silent).

    Args:
        iterations: rounds of sampling and updating at most (paper: 200 to 400).
        batch_size: answers sampled an iteration, over all processes.
        samples_per_prompt: answers to each prompt; batch_size is a multiple of it.
        estimator: of the advantages: gae learns a value model; rloo and grpo compare a prompt's answers
            (samples_per_prompt of 2 or more) and load no value model; or `package.module:attribute` of your own
            (`rlhf.ppo.estimators.Estimator`).
        optimizer: AdamW; batch_size is PPO's minibatch (one step each), epochs are passes over an iteration's answers.
        clip_range: the ratio of new to old probability is clipped this far from 1.
        value_clip_range: the value is clipped this far from its value at the iteration's start.
        value_coefficient: weight of the value loss.
        beta: weight of the KL to the reference in the reward (paper: 0.01 at 7B and 13B, 0.005 above).
        target_kl: let beta move, by 2 % an iteration at most, so that the KL approaches this, in nats per answer; None:
            beta stays (paper).
        gamma: discount.
        lam: lambda of the advantage estimation.
        missing_end_penalty: taken off the whitened score of an answer without an end token.
        unfinished_score: of an answer without an end token, before the penalty: its own, or a neutral one, the mean of
            the finished answers to its prompt (`rlhf.objectives.reward.neutral_unfinished`), where the reward models
            cannot be trusted with what breaks off. In the held-out reward too (`rlhf.ppo.experience.held_out_rewards`).
        evaluate_every: iterations between evaluations on the validation prompts.
        validation_size: held-out prompts of an evaluation, at most.
        patience: stop after this many evaluations in a row without a better reward; the best checkpoint is kept.
        max_kl: stop before updating a policy further than this from the reference, in nats per answer; None: no limit.
        max_repetition: stop before updating a policy whose answers repeat themselves more than this (share of
            repeated 4-grams, 0 to 1); None: no limit.
        checkpoint_every: iterations between states from which a run that was killed goes on.
        keep_checkpoints: this many of the newest states are kept.
        rows: answers that one process decodes side by side.
    """

    iterations: int = 200
    batch_size: int = 512
    samples_per_prompt: int = 1
    estimator: str = "gae"
    optimizer: OptimizerConfig = field(default_factory=paper_optimizer)
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1
    beta: float = 0.01
    target_kl: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    missing_end_penalty: float = 1.0
    unfinished_score: Literal["own", "neutral"] = "own"
    evaluate_every: int = 10
    validation_size: int = 512
    patience: int = 5
    max_kl: float | None = None
    max_repetition: float | None = None
    checkpoint_every: Annotated[int, Effect.NONE] = 10
    keep_checkpoints: Annotated[int, Effect.NONE] = 2
    rows: Annotated[int, Effect.ROUNDING] = 256

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "batch_size",
            "samples_per_prompt",
            "evaluate_every",
            "validation_size",
            "patience",
            "checkpoint_every",
            "keep_checkpoints",
            "rows",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("clip_range", "value_clip_range"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: must be above 0, got {getattr(self, name)}")
        for name in ("value_coefficient", "beta", "missing_end_penalty"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be 0 or above, got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("max_kl", "max_repetition", "target_kl"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"{name}: must be above 0, got {value}; leave it out for none")
        if self.optimizer.on_spike != "keep":
            raise InputError(
                f"on_spike: {self.optimizer.on_spike} is for trainings on fixed rows; leave it at keep: PPO's steps "
                "are held by max_grad_norm and its clipping, its course by max_kl"
            )
        if self.target_kl is not None and self.beta == 0:
            raise InputError("target_kl: moves beta by a share of itself; start with a beta above 0")
        if self.batch_size % self.samples_per_prompt:
            raise InputError(
                f"batch_size: {self.batch_size} must be a multiple of samples_per_prompt ({self.samples_per_prompt})"
            )

        if self.samples_per_prompt < (fewest := find_estimator(self.estimator).min_samples):
            raise InputError(
                f"estimator: {self.estimator} compares answers to the same prompt; set samples_per_prompt to {fewest} "
                "or more"
            )

    @property
    def learns_value(self) -> bool:
        """Whether the estimator needs a value model."""
        return find_estimator(self.estimator).needs_value

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts drawn each iteration."""
        return self.batch_size // self.samples_per_prompt
