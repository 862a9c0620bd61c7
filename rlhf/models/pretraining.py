"""A tokenizer and a small Llama from scratch: what stands in for a base model where none can be downloaded.

Light: torch and transformers are loaded when called.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, Conversation, Renderer
from rlhf.training.loop import Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from rlhf.architecture import LlamaSize

Block = list[Sequence[int]]
MARKUP = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `vocab_size` entries, where the texts have that many merges.

    <s>, </s> and <pad> are its special tokens; the chat template is Llama 2's, whose four markup words are tokens too.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    """A Llama with random weights (torch's global generator) and tied embeddings, of the tokenizer's vocabulary.

    The weights' standard deviation is hidden_size ** -0.5: the usual 0.02 is too small for a narrow model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

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
            initializer_range=size.hidden_size**-0.5,
        )
    )


def write_untrained(policy: str | os.PathLike[str], folder: Path, seed: int) -> None:
    """Write a checkpoint of the policy's architecture and tokenizer with random weights, as its class draws them.

    Args:
        policy: checkpoint folder; of an adapter its base.
        seed: of the weights; torch's own generator is left as it was.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlhf.models.checkpoint.folder import base_folder
    from rlhf.models.checkpoint.pretrained import from_pretrained
    from rlhf.models.policy import load_tokenizer

    config = from_pretrained(AutoConfig, base_folder(policy))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.save_pretrained(folder)
    load_tokenizer(policy).save_pretrained(folder)


def token_ids(rows: Sequence[str | Conversation], renderer: Renderer) -> list[list[int]]:
    """Each document between its begin and end token; dialogues by the chat template, which writes these itself."""
    tokenizer = renderer.tokenizer
    encoded = iter(renderer.text_ids([row for row in rows if isinstance(row, str)]))
    dialogues = iter(renderer.dialogues([row for row in rows if not isinstance(row, str)]))
    return [
        [tokenizer.bos_token_id, *next(encoded), tokenizer.eos_token_id]
        if isinstance(row, str)
        else next(dialogues).input_ids
        for row in rows
    ]


def pack(documents: Sequence[Sequence[int]], length: int, seed: int) -> list[Block]:
    """Documents in random order, put into blocks of at most `length` tokens; a longer one is cut into several.

    Documents of a block do not see each other (`block_task`): short texts are then learned in far fewer tokens.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    blocks: list[Block] = []
    room = 0
    for i in order:
        for start in range(0, len(documents[i]), length):
            piece = documents[i][start : start + length]
            if len(piece) > room:
                blocks.append([])
                room = length
            blocks[-1].append(piece)
            room -= len(piece)
    return blocks


def block_task(length: int, pad: int) -> Task[Block]:
    """Next-token loss, float32, on every token of a document but its first.

    Positions start again with each document; from that transformers keeps them apart in its attention mask.
    """
    import torch
    from torch.nn.functional import cross_entropy

    def collate(blocks: Sequence[Block]) -> dict[str, Tensor]:
        batch = {name: torch.zeros(len(blocks), length, dtype=torch.long) for name in ("position_ids", "labels")}
        batch["input_ids"] = torch.full((len(blocks), length), pad)
        batch["labels"] -= 100
        for row, block in enumerate(blocks):
            end = 0
            for document in block:
                start, end = end, end + len(document)
                batch["input_ids"][row, start:end] = torch.tensor(document)
                batch["labels"][row, start : end - 1] = torch.tensor(document[1:])
                batch["position_ids"][row, start:end] = torch.arange(end - start)
            batch["position_ids"][row, end:] = torch.arange(length - end)
        return batch

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="sum"), {}

    return Task(
        collate=collate,
        loss=loss,
        weight=lambda block: float(sum(len(document) - 1 for document in block)),
        length=lambda block: sum(map(len, block)),
    )
