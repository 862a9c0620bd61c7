"""Supervised fine-tuning (Llama 2 paper, section 3.1): a base checkpoint learns to answer, in the chat format.

The loss is on answer tokens alone. With `--adapter.r 64` only a LoRA adapter is trained, with `--quantization nf4` as
well over 4-bit weights (QLoRA: learning rate 2e-4). A share of the dialogues is held out and measured after each epoch.

    accelerate launch recipes/sft.py --config recipes/configs/embedded/sft.yaml
    accelerate launch recipes/sft.py --policy my_base --chat_template llama2 --data my_chats.jsonl --output sft

Writes into the output folder: checkpoint/, metrics.jsonl (loss per answer token of each step, `heldout_loss`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlhf.configuration import run_recipe
from rlhf.conversation import read_chat_template
from rlhf.data.loading import Sources, load_conversations, source_files
from rlhf.data.splitting import split_by_first_turn
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.models.checkpoint import require_checkpoint
from rlhf.models.config import AdapterConfig
from rlhf.stage import open_stage, require_files, require_new


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning.

    Args:
        output: folder of this stage.
        policy: checkpoint folder to start from; its tokenizer needs a chat template, or gets one by chat_template.
        data: dialogues that end with an answer, `messages` or `prompt` and `completion`, …: a local file or a hub name,
            or several.
        chat_template: replaces the tokenizer's, and is saved with it: llama2, or a file with a Jinja template; null:
            the tokenizer's own.
        adapter: train a LoRA adapter and not the weights; null: full fine-tuning.
        quantization: nf4 holds the weights in 4 bit, which needs an adapter; null: as they are.
        finetuning: length, masking, schedule.
        seed: of the held-out split, the rows' order and dropout.
        heldout_share: share of the dialogues (by their first turn) to measure and never train on.
    """

    output: Path
    policy: Path
    data: Sources
    chat_template: str | None = None
    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    seed: int = 0
    heldout_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.heldout_share < 1:
            raise InputError(f"heldout_share: must be 0 or above and below 1, got {self.heldout_share}")
        if self.quantization is not None and self.adapter is None:
            raise InputError("quantization: 4-bit weights cannot be trained; give an adapter too, e.g. --adapter.r 64")


def main(config: SftConfig) -> None:
    data = source_files(data=config.data)
    require_new(config.output)
    require_files(policy=config.policy, **data)
    require_checkpoint(config.policy)
    template = read_chat_template(config.chat_template)
    dialogues = load_conversations(config.data, on_bad_row=config.finetuning.on_bad_row)
    shares = {"train": 1 - config.heldout_share, "heldout": config.heldout_share}
    parts = split_by_first_turn(dialogues, shares, config.seed, key=lambda messages: messages)

    from rlhf.finetuning.supervised import finetune, training_renderer
    from rlhf.metrics import MetricsLog
    from rlhf.models.policy import load_policy, load_tokenizer, save_policy
    from rlhf.training.accelerator import make_accelerator
    from rlhf.training.checkpoints import RESUME, kept_states

    accelerator = make_accelerator(seed=config.seed)
    inputs = {"policy": config.policy, **data}
    if config.chat_template is not None and config.chat_template != "llama2":
        inputs["chat_template"] = Path(config.chat_template)
    with open_stage(config.output, config, inputs=inputs, keep=kept_states(inputs, config, accelerator)) as folder:
        accelerator.wait_for_everyone()
        tokenizer = load_tokenizer(config.policy)
        tokenizer.chat_template = template or tokenizer.chat_template
        policy = load_policy(config.policy, adapter=config.adapter, quantization=config.quantization)
        finetune(
            policy,
            training_renderer(tokenizer, policy, config.finetuning),
            parts["train"],
            config.finetuning,
            accelerator,
            MetricsLog(folder, accelerator),
            config.seed,
            heldout=parts["heldout"],
            name="sft",
            states=folder / RESUME,
        )
        merge = config.adapter is None or config.adapter.merge
        save_policy(policy, tokenizer, folder / "checkpoint", accelerator, merge=merge)
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_recipe(main, SftConfig)
