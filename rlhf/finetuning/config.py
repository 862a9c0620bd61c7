"""Settings of supervised fine-tuning, and what the config of every stage that fine-tunes has. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf.conversation import Conversation
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations
from rlhf.errors import InputError
from rlhf.models.checkpoint.context import TooLongRow
from rlhf.models.config import AdapterConfig
from rlhf.stage import Effect, InputPath, KeepingConfig
from rlhf.training.config import OptimizerConfig


@dataclass(frozen=True)
class FinetuningConfig:
    """Supervised fine-tuning on dialogues: the loss is on answers only (Llama 2 paper, section 3.1).

    Args:
        max_length: most tokens of a dialogue (the model's context, where that is shorter).
        too_long: a longer dialogue loses its oldest turns, and is left out where its last turn alone is too long (cut);
            or it is left out (skip), or refused by its number (refuse). What is cut or left out is counted.
        train: "all" answers of a dialogue, or only its "last".
        on_bad_row: a dialogue that the template refuses: "refuse" it, naming the row, or "skip" it, counted and
            reported.
        packing: compute a micro-batch as one row without padding, whose dialogues do not see each other, where the
            model's attention can (full causal attention under sdpa); false: as padded rows. Same up to rounding.
        checkpoint_every: steps between states from which a stage that was killed goes on.
        optimizer: schedule and sizes; the paper's rate 2e-5 falls to 10 %, 2 epochs, 64 rows per step.
    """

    max_length: int = 4096
    too_long: TooLongRow = "cut"
    train: Literal["all", "last"] = "all"
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    packing: Annotated[bool, Effect.ROUNDING] = True
    checkpoint_every: Annotated[int, Effect.NONE] = 200
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(epochs=2))

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise InputError(f"max_length: must be at least 2, got {self.max_length}")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every: must be at least 1, got {self.checkpoint_every}")


@dataclass(frozen=True, kw_only=True)
class FinetuneStageConfig(KeepingConfig):
    """What the config of every stage that fine-tunes has (`rlhf.finetuning.stage`).

    Args:
        adapter: train a LoRA adapter and not the weights; null: full fine-tuning.
        quantization: nf4 holds the weights in 4 bit, which needs an adapter; null: as they are.
        finetuning: length, masking, schedule.
        seed: of every draw: rows' order, dropout, and what else is drawn (added to sampling.seed).
    """

    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.quantization is not None and self.adapter is None:
            raise InputError("quantization: 4-bit weights cannot be trained; give an adapter too, e.g. --adapter.r 64")


@dataclass(frozen=True, kw_only=True)
class MixedFinetuneConfig(FinetuneStageConfig):
    """The same for a stage that makes its own rows, and mixes others in against forgetting.

    Args:
        sft_data: dialogues to mix in; null: none.
        sft_share: their share of all rows.
        mixed_data: more to mix in (files or hub names), such as the rows.jsonl of earlier Ghost Attention, which
            a fine-tuning that starts without them would lose; each dialogue trains on its last answer.
        mixed_share: share of these of all rows.
    """

    sft_data: InputPath | None = None
    sft_share: float = 0.5
    mixed_data: tuple[DataSource, ...] = ()
    mixed_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sft_share", "mixed_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: must be 0 or above and below 1, got {getattr(self, name)}")
        if self.mixed_data and self.finetuning.train != "last":
            raise InputError(
                "finetuning.train: must be last with mixed_data; Ghost Attention's earlier answers are not to be learnt"
            )

    def read_mixed_data(self) -> list[Conversation]:
        """The dialogues of `mixed_data`. InputError names file and line of a bad row."""
        return [dialogue for source in self.mixed_data for dialogue in load_conversations(source)]
