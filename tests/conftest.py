"""One tiny tokenizer, policy and reward model for the whole session; the shared data where it is at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from chat_server import ChatServer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
REAL_MODEL = Path(os.environ.get("RLHF_CHAT_MODEL", ROOT / "runs" / "smollm2"))
WORDS = """what is the river of velda ? the river of velda is mora . how do I paint my own goat you are a guide
please answer in one word sure hello I cannot help with that because it is not safe to try instead ask a doctor"""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    folder = Path(os.environ.get("RLHF_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real data (../shared/data) is not at hand; set RLHF_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Path:
    """A chat model that has learnt something: SmolLM2-135M-Instruct, or the folder that RLHF_CHAT_MODEL names."""
    if not (REAL_MODEL / "config.json").is_file():
        pytest.skip(f"there is no chat model in {REAL_MODEL}; `python examples/smollm2.py {REAL_MODEL}` makes it")
    return REAL_MODEL


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """See `make_tiny_tokenizer`."""
    return make_tiny_tokenizer()


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


@pytest.fixture(scope="session")
def tiny_policy_path(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama (hidden 32, context 256) with the tiny tokenizer, saved as a checkpoint folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny_policy")
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A healthy one; failed requests are repeated at once."""
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    server = ChatServer()
    yield server
    server.close()
