"""Settings of the optimisation loop, and the learning-rate schedule. Light: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf.errors import InputError
from rlhf.stage import Effect

MOST_WARMUP = 0.25
"""Share of a training's steps that warmup_min_steps may take: the paper's 5 are cut below 20 steps (decision 4)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule (Llama 2 paper, sections 3.1 and 3.2.2, unless said otherwise).

    Args:
        learning_rate: peak rate.
        schedule: "cosine" falls to final_fraction of the peak; "constant" stays at it (PPO).
        final_fraction: last rate over peak rate.
        warmup_fraction: share of all steps that the rate rises linearly.
        warmup_min_steps: but at least this many steps (the paper's reward models: 5), or a quarter of a short training.
        weight_decay: decoupled, on matrices only: norms and biases are left out (decision 5).
        betas: Adam's decay rates.
        eps: Adam's epsilon.
        max_grad_norm: clip the global gradient norm here.
        epochs: passes over the rows.
        batch_size: rows (or pairs) a step, over all processes and accumulation.
        micro_batch_size: rows per forward pass on one process.
        gradient_checkpointing: trade time for memory.
        on_spike: what is done about a step whose loss or gradient norm stands far above the 50 before it, most often of
            a bad batch. Its rows are written to spikes.jsonl; then it is taken all the same (keep), left out (skip; not
            under DeepSpeed, which steps before anybody sees the gradient), or the training ends before it (stop).
    """

    learning_rate: float = 2e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    final_fraction: float = 0.1
    warmup_fraction: float = 0.03
    warmup_min_steps: int = 0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    max_grad_norm: float = 1.0
    epochs: int = 1
    batch_size: int = 64
    micro_batch_size: Annotated[int, Effect.ROUNDING] = 8
    gradient_checkpointing: Annotated[bool, Effect.ROUNDING] = False
    on_spike: Literal["keep", "skip", "stop"] = "keep"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "max_grad_norm", "epochs", "batch_size", "micro_batch_size"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: must be above 0, got {getattr(self, name)}")
        if self.learning_rate > 1:
            raise InputError(
                f"learning_rate: must be at most 1, got {self.learning_rate}; Adam moves a weight by about that a step"
            )
        for name in ("weight_decay", "warmup_min_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be 0 or above, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas: must be 0 or above and below 1, got {self.betas}")
        for name in ("final_fraction", "warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must lie between 0 and 1, got {getattr(self, name)}")

    def warmup_steps(self, total_steps: int) -> int:
        """Steps of `total_steps` that the rate rises: the larger of warmup_min_steps (cut to a quarter of all
        steps, rounded up, so that a short training is not all warm-up) and warmup_fraction of them, rounded up.
        """
        least = min(self.warmup_min_steps, math.ceil(MOST_WARMUP * total_steps))
        return max(least, math.ceil(self.warmup_fraction * total_steps))

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Rate of `step` (0-based) of `total_steps`.

        The last step of the warm-up has the peak rate; the last step of all has final_fraction of it.
        """
        warmup = self.warmup_steps(total_steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        progress = min(1.0, (step - warmup + 1) / max(1, total_steps - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)
