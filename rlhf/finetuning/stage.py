"""The one fine-tuning stage: render, mix, train with states to go on from, merge, save.

SFT, rejection sampling, Ghost Attention, context distillation and the safety study all fine-tune here. torch is loaded
when called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.conversation import Conversation, Renderer, apply_kwargs, given_kwargs
from rlhf.data.mixing import mix_several
from rlhf.finetuning.config import FinetuneStageConfig, MixedFinetuneConfig
from rlhf.models.policy import add_pad_embedding, load_policy, load_tokenizer, save_policy
from rlhf.stage import Stage
from rlhf.training.accelerator import frozen_dtype
from rlhf.training.kept import RESUME
from rlhf.training.work import close_training

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def finetune_stage(
    stage: Stage,
    accelerator: Accelerator,
    checkpoint: Path,
    dialogues: Sequence[Conversation],
    config: FinetuneStageConfig,
    *,
    name: str,
    mixed_in: Sequence[Conversation] = (),
    heldout: Sequence[Conversation] = (),
    chat_template: str | None = None,
    new_tokens: Sequence[str] = (),
    save: bool = True,
) -> PreTrainedModel:
    """Fine-tune a checkpoint on dialogues inside `stage.work`, which keeps `kept_states`; returns it in eval mode.

    After a kill it goes on from the newest state, given the same rows. The stage's closing block gets the rows used and
    left out, the loss, and what looks wrong about the training.

    Args:
        checkpoint: folder to start from; its tokenizer is used and saved.
        dialogues: the stage's own rows, the same on every process.
        config: adapter, quantization, finetuning, seed (and, with `mixed_in`, sft_share).
        name: in messages.
        mixed_in: other dialogues, mixed in as `sft_share` says (`rlhf.data.mixing.mix_several`), beside the config's
            `mixed_data`.
        heldout: dialogues to measure, never trained on.
        chat_template: replaces the tokenizer's and is saved with it.
        new_tokens: special tokens that are added to the tokenizer where it lacks them, each with the mean of all
            embeddings as its own; whole weights alone train these.
        save: write <stage>/checkpoint.

    Raises:
        InputError: see `rlhf.finetuning.supervised.finetune`.
    """
    from rlhf.finetuning.supervised import finetune, training_renderer

    tokenizer = load_tokenizer(checkpoint)
    tokenizer.add_tokens(list(new_tokens), special_tokens=True)
    if chat_template:
        tokenizer.chat_template = chat_template
        apply_kwargs(tokenizer, given_kwargs())
    Renderer(tokenizer)  # a template that does not do is found before the weights are loaded
    frozen = config.adapter is not None and not config.adapter.merge  # what is merged is added in float32
    dtype = frozen_dtype(accelerator.device) if frozen else "float32"
    policy = load_policy(checkpoint, adapter=config.adapter, quantization=config.quantization, dtype=dtype)
    if new_tokens:
        add_pad_embedding(policy, tokenizer)
    others = [(mixed_in, getattr(config, "sft_share", 0.0))] if mixed_in else []
    if isinstance(config, MixedFinetuneConfig) and config.mixed_data:
        others.append((config.read_mixed_data(), config.mixed_share))
    rows = mix_several(dialogues, others, config.seed) if others else list(dialogues)
    left_out: Counter[str] = Counter()
    result = finetune(
        policy,
        training_renderer(tokenizer, policy, config.finetuning),
        rows,
        config.finetuning,
        accelerator,
        stage.log,
        config.seed,
        heldout=heldout,
        name=name,
        states=stage.folder / RESUME,
        left_out=left_out,
    )
    mixed = {"mixed_in": len(rows) - len(dialogues)} if others else {}
    close_training(stage, result, left_out=left_out, figures=mixed)
    if others:
        stage.closing.show([f"mixed_in: rows of other dialogues, among the {result.rows} used"])
    if save:
        merge = config.adapter is None or config.adapter.merge
        save_policy(policy, tokenizer, stage.folder / "checkpoint", accelerator, merge=merge)
    return policy
