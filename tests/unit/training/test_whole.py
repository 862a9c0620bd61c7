"""What cannot be partitioned is refused by whatever would partition it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.errors import InputError
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Stepper
from rlhf.training.whole import WholeModel, prepare_frozen


@pytest.mark.parametrize(
    "partition", [WholeModel, lambda model, accelerator: Stepper(model, OptimizerConfig(), accelerator)]
)
def test_weights_in_4_bit_are_refused_under_zero_3(
    partition: Callable[[nn.Module, Accelerator], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(8, 8), bitsandbytes.nn.Linear4bit(8, 8, quant_type="nf4"))
    accelerator = make_accelerator()
    partition(model, accelerator)
    monkeypatch.setattr("rlhf.training.whole.is_partitioned", lambda accelerator: True)
    with pytest.raises(InputError, match=r"quantization: weights in 4 bit cannot be partitioned .*ZeRO-3"):
        partition(model, accelerator)


def test_a_frozen_model_s_buffers_keep_their_type() -> None:
    """Rotary frequencies of eight bits would turn far tokens by whole radians."""
    plugin = SimpleNamespace(zero_stage=2)
    accelerator: Any = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        mixed_precision="bf16",
        state=SimpleNamespace(deepspeed_plugin=plugin),
        device=torch.device("cpu"),
    )
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **size))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    frozen = prepare_frozen(model, accelerator)
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}
    assert buffers and all(torch.equal(buffer, buffers[name]) for name, buffer in frozen.named_buffers())
