"""Train a tokenizer and a small Llama from scratch on raw text: the base model of the runs that download nothing.

The paper starts from Llama 2's own pretraining (section 2); this is its stand-in, in about a minute. Documents are
packed into blocks and do not see each other.

    python recipes/pretrain.py --config recipes/configs/embedded/pretrain.yaml --output runs/base
    accelerate launch --config_file ds_configs/accelerate_cpu_2.yaml recipes/pretrain.py --config my_pretrain.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from rlhf.architecture import LlamaSize
from rlhf.configuration import run_recipe
from rlhf.conversation import Renderer
from rlhf.data.loading import load_pretraining
from rlhf.errors import InputError
from rlhf.models.policy import save_policy
from rlhf.models.pretraining import block_task, new_llama, pack, token_ids, train_tokenizer
from rlhf.stage import Effect, InputPath, KeepingConfig, Stage, open_stage
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import RESUME, States
from rlhf.training.loop import TrainingResult, train
from rlhf.training.work import close_training, training_work

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(KeepingConfig):
    """What to train on, and how large.

    Args:
        data: rows with "text", or with "messages", which the chat template renders.
        size: of the model.
        vocab_size: of the tokenizer, special tokens included.
        block_length: tokens of a training block.
        optimizer: its batch sizes count blocks.
        checkpoint_every: steps between states from which a stage that was killed goes on.
        seed: of weights and order.
    """

    data: InputPath
    size: LlamaSize = field(default_factory=LlamaSize)
    vocab_size: int = 1024
    block_length: int = 128
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=4e-3, eps=1e-8, batch_size=32, micro_batch_size=16)
    )
    checkpoint_every: Annotated[int, Effect.NONE] = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise InputError(
                f"vocab_size: must be at least 300 (256 bytes and the special tokens), got {self.vocab_size}"
            )
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every: must be at least 1, got {self.checkpoint_every}")
        if not 2 <= self.block_length <= self.size.context:
            raise InputError(
                f"block_length: must lie between 2 and size.context ({self.size.context}), got {self.block_length}"
            )


def main(config: PretrainConfig) -> None:
    stage = open_stage(config)
    rows = load_pretraining(config.data)

    with training_work(stage) as accelerator:
        texts = (row if isinstance(row, str) else " ".join(m["content"] for m in row) for row in rows)
        tokenizer = train_tokenizer(texts, config.vocab_size)
        documents = token_ids(rows, Renderer(tokenizer))
        blocks = pack(documents, config.block_length, config.seed)
        task = block_task(config.block_length, tokenizer.pad_token_id)
        model = new_llama(config.size, tokenizer)
        states = States(stage.folder / RESUME, config.checkpoint_every)
        optimizer, name = config.optimizer, "pretrain"
        result = train(
            model,
            blocks,
            task,
            optimizer,
            accelerator,
            stage.log,
            seed=config.seed,
            name=name,
            states=states,
            shown=lambda block: [tokenizer.decode(list(document)) for document in block],
        )
        save_policy(model, tokenizer, stage.folder / "checkpoint", accelerator)
        record_pretraining(stage, documents, model, len(tokenizer), result)


def record_pretraining(
    stage: Stage, documents: Sequence[Sequence[int]], model: PreTrainedModel, vocabulary: int, result: TrainingResult
) -> None:
    """Write the figures; the closing block says them too."""
    figures = {
        "documents": len(documents),
        "tokens": sum(map(len, documents)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": vocabulary,
        "last_loss": result.losses[-1],
    }
    stage.write_json("pretraining.json", figures)
    close_training(stage, result, rows=len(documents), figures=figures)


if __name__ == "__main__":
    run_recipe(main, PretrainConfig)
