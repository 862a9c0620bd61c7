"""Supervised fine-tuning (Llama 2 paper, section 3.1): a base checkpoint learns to answer, in the chat format.

The loss is on answer tokens alone. With `--adapter.r 64` only a LoRA adapter is trained, with `--quantization nf4` as
well over 4-bit weights (QLoRA: learning rate 2e-4). A share of the dialogues is held out and measured after each epoch.

    accelerate launch recipes/sft.py --config recipes/configs/embedded/sft.yaml
    accelerate launch recipes/sft.py --policy my_base --chat_template llama2 --data my_chats.jsonl --output sft

Writes into the output folder: checkpoint/, metrics.jsonl (loss per answer token of each step, `heldout_loss`),
heldout.jsonl (the dialogues that it was not trained on, where `rlhf annotate --compare sft people` finds them).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.configuration import run_recipe
from rlhf.conversation import read_chat_template
from rlhf.data.fields import DataSources
from rlhf.data.loading import load_conversations
from rlhf.data.splitting import split_by_first_turn
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuneStageConfig
from rlhf.finetuning.stage import finetune_stage
from rlhf.models.checkpoint.fields import ChatTemplate, TrainedCheckpoint
from rlhf.stage import open_stage
from rlhf.training.work import training_work


@dataclass(frozen=True, kw_only=True)
class SftConfig(FinetuneStageConfig):
    """Supervised fine-tuning.

    Args:
        policy: checkpoint folder to start from; its tokenizer needs a chat template, or gets one by chat_template.
        data: dialogues that end with an answer, `messages` or `prompt` and `completion`, …: a local file or a hub name,
            or several.
        chat_template: replaces the tokenizer's, and is saved with it: llama2, or a file with a Jinja template; null:
            the tokenizer's own.
        new_tokens: special tokens that the template writes and the tokenizer lacks, e.g. <|im_end|>: they are added,
            and saved with it. An adapter does not train their embeddings.
        heldout_share: share of the dialogues (by their first turn) to measure and never train on.
        seed: of the held-out split, the rows' order and dropout.
    """

    policy: TrainedCheckpoint
    data: DataSources
    chat_template: ChatTemplate | None = None
    new_tokens: tuple[str, ...] = ()
    heldout_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.heldout_share < 1:
            raise InputError(f"heldout_share: must be 0 or above and below 1, got {self.heldout_share}")
        if self.new_tokens and self.adapter is not None:
            raise InputError(
                "new_tokens: an adapter does not train their embeddings; train the weights, or let the template write "
                "{{ eos_token }} behind an answer"
            )
        if blank := [token for token in self.new_tokens if len(token.strip()) < 2]:
            raise InputError(f"new_tokens: must be texts of two characters and more, got {blank[0]!r}")


def main(config: SftConfig) -> None:
    stage = open_stage(config)
    dialogues = load_conversations(config.data, on_bad_row=config.finetuning.on_bad_row)
    shares = {"train": 1 - config.heldout_share, "heldout": config.heldout_share}
    parts = split_by_first_turn(dialogues, shares, config.seed, key=lambda messages: messages)
    if dialogues and not parts["train"]:
        raise InputError(
            f"heldout_share: {config.heldout_share:g} holds out all {len(dialogues)} dialogues of {config.data}; give "
            "more, or set it to 0"
        )

    with training_work(stage) as accelerator:
        finetune_stage(
            stage,
            accelerator,
            config.policy,
            parts["train"],
            config,
            name="sft",
            heldout=parts["heldout"],
            chat_template=read_chat_template(config.chat_template),
            new_tokens=config.new_tokens,
        )
        if parts["heldout"]:
            stage.write_rows("heldout.jsonl", ({"messages": messages} for messages in parts["heldout"]))


if __name__ == "__main__":
    run_recipe(main, SftConfig)
