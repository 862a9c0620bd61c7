"""Settings of reward-model training. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf.errors import InputError
from rlhf.models.checkpoint.context import TooLongRow
from rlhf.models.config import AdapterConfig
from rlhf.objectives.margins import margin_table
from rlhf.stage import Effect
from rlhf.training.config import OptimizerConfig


def paper_optimizer() -> OptimizerConfig:
    """Paper, section 3.2.2: one epoch, 1e-5 (5e-6 at 70B), cosine to 10 %, warm-up 3 % but 5 steps, 512 pairs."""
    return OptimizerConfig(learning_rate=1e-5, warmup_min_steps=5, batch_size=512, epochs=1)


@dataclass(frozen=True)
class RewardTrainingConfig:
    """How a reward model is trained (Llama 2 paper, section 3.2.2).

    Args:
        margin: the loss asks that the chosen answer lead by so much, by strength: none; small (1, 2/3, 1/3, 0); large
            (3, 2, 1, 0); or a figure of your own for each of significantly, better, slightly and negligibly. A pair of
            unknown strength has no margin.
        centering_weight: of the penalty (chosen + rejected score)^2, averaged over pairs, which keeps the scores' mean
            near 0; 0.01 is usual.
        adapter: train a LoRA adapter and the heads, not the backbone's weights; null: full training.
        quantization: nf4 holds the backbone's weights in 4 bit, which needs an adapter; null: as they are.
        safety_loss_weight: of the safety labels' cross-entropy, averaged over a pair's labelled answers and added to
            its ranking loss; only for the safety model (decision 16).
        max_length: most tokens of a dialogue (what the model takes, where that is less, and where this is null).
        too_long: a longer pair loses its oldest turns, the same ones on both sides, and is left out where its last turn
            alone is too long (cut); or it is left out (skip), or refused by its id (refuse). All is counted.
        checkpoint_every: steps between states from which a stage that was killed goes on.
        optimizer: AdamW and its schedule; a "row" of batch_size and micro_batch_size is a pair.
    """

    margin: str | dict[str, float] = "small"
    centering_weight: float = 0.0
    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    safety_loss_weight: float = 0.1
    max_length: int | None = None
    too_long: TooLongRow = "cut"
    checkpoint_every: Annotated[int, Effect.NONE] = 200
    optimizer: OptimizerConfig = field(default_factory=paper_optimizer)

    def __post_init__(self) -> None:
        margin_table(self.margin)
        for name in ("centering_weight", "safety_loss_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be 0 or above, got {getattr(self, name)}")
        if self.quantization is not None and self.adapter is None:
            raise InputError("quantization: 4-bit weights cannot be trained; give an adapter too (adapter.r: 64)")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every: must be at least 1, got {self.checkpoint_every}")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"max_length: must be at least 2, got {self.max_length}")
