"""Tokenizer, policy and reward model of a thousand weights or so, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = """what is the river of velda ? the river of velda is mora . how do I paint my own goat you are a guide
please answer in one word sure hello I cannot help with that because it is not safe to try instead ask a doctor"""


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 entries with <s>, </s>, <pad> and the Llama 2 chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rlhf.conversation import LLAMA2_CHAT_TEMPLATE

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = LLAMA2_CHAT_TEMPLATE
    return fast


def save_tiny_policy(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random two-layer Llama (hidden 32, context 256) with the tokenizer, saved as a checkpoint folder."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(_config(tokenizer, tie_word_embeddings=True)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_reward(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The same with a random score head, as a reward model's folder."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(1)
    LlamaForSequenceClassification(_config(tokenizer, num_labels=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
