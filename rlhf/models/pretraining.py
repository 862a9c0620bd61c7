"""A tokenizer and a small Llama from scratch: what stands in for a base model where none can be downloaded."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, Conversation, Renderer
from rlhf.errors import InputError
from rlhf.training.loop import Task

if TYPE_CHECKING:
    from rlhf.models.config import LlamaSize

MARKUP = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `vocab_size` entries, where the texts have so many merges.

    <s>, </s> and <pad> are its special tokens; the chat template is Llama 2's, whose four markup words are tokens too.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKUP),
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in MARKUP])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = LLAMA2_CHAT_TEMPLATE
    return fast


def new_llama(size: LlamaSize, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights (torch's global generator) and tied embeddings, of the tokenizer's vocabulary."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_kv_heads,
            max_position_embeddings=size.context,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )


def token_ids(rows: Sequence[str | Conversation], renderer: Renderer) -> list[list[int]]:
    """Each document between its begin and end token; dialogues by the chat template, which writes these itself."""
    tokenizer = renderer.tokenizer
    texts = [row for row in rows if isinstance(row, str)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    dialogues = iter(renderer.dialogues([row for row in rows if not isinstance(row, str)]))
    return [
        [tokenizer.bos_token_id, *next(encoded), tokenizer.eos_token_id]
        if isinstance(row, str)
        else next(dialogues).input_ids
        for row in rows
    ]


def pack(documents: Sequence[Sequence[int]], length: int, seed: int) -> list[list[int]]:
    """Documents in random order, end to end, cut into blocks of `length`; the last, unfinished block is left out.

    Not isolated: a token sees all before it in its block, other documents too. So no mask is needed, and attention
    takes its fastest path.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    stream = [token for i in order for token in documents[i]]
    blocks = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    if not blocks:
        raise InputError(f"data: only {len(stream)} tokens, fewer than one block of {length}; give more text")
    return blocks


def block_task() -> Task[list[int]]:
    """Next-token loss on every token of a block, float32."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        ids = batch["input_ids"]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"), {}

    return Task(
        collate=lambda rows: {"input_ids": torch.tensor(rows)},
        loss=loss,
        weight=lambda row: len(row) - 1.0,
        length=len,
    )
