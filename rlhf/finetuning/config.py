"""Settings of supervised fine-tuning. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf.errors import InputError
from rlhf.training.config import OptimizerConfig


@dataclass(frozen=True)
class FinetuningConfig:
    """Supervised fine-tuning on dialogues: the loss is on answers only (Llama 2 paper, section 3.1).

    Args:
        max_length: most tokens of a dialogue (the model's context, where that is shorter); whole oldest turns are
            dropped to get there.
        train: "all" answers of a dialogue, or only its "last".
        on_bad_row: a dialogue whose last turn alone is too long, or that the template refuses: "refuse" it, naming the
            row, or "skip" it, counted and reported.
        packing: compute a micro-batch as one row without padding, whose dialogues do not see each other, where the
            model's attention can (full causal attention under sdpa); false: as padded rows. Same up to rounding.
        checkpoint_every: steps between states from which an SFT that was killed goes on.
        optimizer: schedule and sizes; the paper's rate 2e-5 falls to 10 %, 2 epochs, 64 rows a step.
    """

    max_length: int = 4096
    train: Literal["all", "last"] = "all"
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    packing: bool = True
    checkpoint_every: int = 200
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(epochs=2))

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise InputError(f"max_length: must be at least 2, got {self.max_length}")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every: must be at least 1, got {self.checkpoint_every}")
