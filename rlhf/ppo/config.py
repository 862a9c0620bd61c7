"""Settings of PPO. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf.errors import InputError
from rlhf.training.config import OptimizerConfig


def paper_optimizer() -> OptimizerConfig:
    """AdamW as in the paper's section 3.2.3: constant rate, minibatches of 64, each rollout seen once."""
    return OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup_fraction=0.0, batch_size=64)


@dataclass(frozen=True)
class PPOConfig:
    """PPO with two reward models (Llama 2 paper, section 3.2.3; RECIPE section 5; "open" where neither fixes a figure).

    Args:
        iterations: rounds of sampling and updating at most (paper: 200 to 400).
        batch_size: answers sampled an iteration, over all processes.
        samples_per_prompt: answers to each prompt; batch_size is a multiple of it.
        optimizer: AdamW; batch_size is PPO's minibatch (one step each), epochs are passes over an iteration's answers.
        clip_range: the ratio of new to old probability is clipped this far from 1.
        value_clip_range: the value is clipped this far from its value at the iteration's start (open).
        value_coefficient: weight of the value loss (open).
        beta: weight of the KL to the reference in the reward (paper: 0.01 at 7B and 13B, 0.005 above).
        gamma: discount (open).
        lam: lambda of the advantage estimation (open).
        missing_end_penalty: taken off the whitened score of an answer without an end token (open).
        evaluate_every: iterations between evaluations on the validation prompts.
        validation_size: held-out prompts of an evaluation, at most.
        patience: stop after so many evaluations in a row without a better reward; the best checkpoint is kept.
        max_kl: stop before updating a policy further than this from the reference, in nats an answer; None: no limit.
        sampling_batch_size: answers that one process decodes side by side.
    """

    iterations: int = 200
    batch_size: int = 512
    samples_per_prompt: int = 1
    optimizer: OptimizerConfig = field(default_factory=paper_optimizer)
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1
    beta: float = 0.01
    gamma: float = 1.0
    lam: float = 0.95
    missing_end_penalty: float = 1.0
    evaluate_every: int = 10
    validation_size: int = 512
    patience: int = 5
    max_kl: float | None = None
    sampling_batch_size: int = 256

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "batch_size",
            "samples_per_prompt",
            "evaluate_every",
            "validation_size",
            "patience",
            "sampling_batch_size",
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
        if self.max_kl is not None and self.max_kl <= 0:
            raise InputError(f"max_kl: must be above 0, got {self.max_kl}; leave it out for no limit")
        if self.batch_size % self.samples_per_prompt:
            raise InputError(
                f"batch_size: {self.batch_size} must be a multiple of samples_per_prompt ({self.samples_per_prompt})"
            )

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts drawn each iteration."""
        return self.batch_size // self.samples_per_prompt
