"""Linear layers that multiply by packed copies: the same numbers, within a call, and only where they pay."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.conversation import Renderer
from rlhf.models.adapters import inject_adapter, lora_config
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.sampling.decoding import packed_weights as module
from rlhf.sampling.decoding.packed_weights import packed_weights
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams

IDS = torch.tensor([[5, 9, 2, 7], [1, 3, 8, 4]])


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST", 0)


def packed(model: PreTrainedModel) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear) and "forward" in vars(layer)]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast", "quantization"),
    [("float32", False, None), ("bfloat16", False, None), ("float32", True, None), ("float32", False, "nf4")],
)
def test_logits_are_those_of_the_weights_as_they_are(
    tiny_policy_path: Path, dtype: str, autocast: bool, quantization: Literal["nf4"] | None, adapter: bool
) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes")
    model: Any = load_policy(tiny_policy_path, dtype=dtype, quantization=quantization)
    if adapter:
        inject_adapter(model, lora_config(AdapterConfig(r=4, alpha=8), "CAUSAL_LM", model))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    model.eval()
    cast = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()

    def logits() -> Tensor:
        found: Tensor = model(input_ids=IDS).logits
        return found

    with torch.inference_mode(), cast:
        plain = logits()
        with packed_weights(model, 8):
            layers = packed(model)
            assert (quantization is not None) == any(hasattr(layer.weight, "quant_state") for layer in layers)
            assert adapter == any("forward" in vars(module) for module in model.modules() if hasattr(module, "lora_A"))
            found = logits()
    assert layers and not packed(model)
    assert found.dtype == plain.dtype
    exact = dtype == "float32" and not autocast
    torch.testing.assert_close(
        found, plain, **({"atol": 1e-5, "rtol": 1e-5} if exact else {"atol": 0.05, "rtol": 0.05})
    )


def test_another_adapter_and_a_pass_with_gradients_go_by_their_own_weights(tiny_policy_path: Path) -> None:
    """As do a pass with the adapter off, and one whose weights learn meanwhile."""
    from peft import PeftModel, get_peft_model

    base = load_policy(tiny_policy_path)
    config = lora_config(AdapterConfig(r=4, alpha=8), "CAUSAL_LM", base)
    wrapped: PeftModel = get_peft_model(base, config)  # type: ignore[assignment]
    wrapped.add_adapter("other", config)
    for number, (name, weight) in enumerate(wrapped.named_parameters()):
        if "lora_B" in name:
            nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))
    model: Any = wrapped.eval().base_model.model

    def logits(adapter: str) -> Tensor:
        wrapped.set_adapter(adapter)
        found: Tensor = model(input_ids=IDS).logits
        return found

    with torch.no_grad():
        expected = {name: logits(name) for name in ("other", "default")}
        with wrapped.disable_adapter():
            bare = model(input_ids=IDS).logits
    with torch.inference_mode():
        wrapped.set_adapter("default")
        with packed_weights(model, 8):
            for name in ("default", "other", "default"):
                torch.testing.assert_close(logits(name), expected[name], atol=1e-5, rtol=1e-5)
            with wrapped.disable_adapter():
                torch.testing.assert_close(model(input_ids=IDS).logits, bare, atol=1e-5, rtol=1e-5)
            with torch.inference_mode(False), torch.enable_grad():
                model(input_ids=IDS).logits.sum().backward()
    learnt = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    assert any("lora_B.default" in name for name in learnt)


def test_samples_are_the_same(tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, renderer = load_policy(tiny_policy_path).eval(), Renderer(load_tokenizer(tiny_policy_path))
    prompts: Any = [[{"role": "user", "content": text}] for text in ("what is mora ?", "why ?")]
    params = SamplingParams(max_new_tokens=12, temperature=0.7, seed=3)
    seen: list[int] = []
    whole = module._layers
    monkeypatch.setattr(module, "_layers", lambda model: seen.append(len(found := whole(model))) or found)
    with_copies = InProcessSampler(model, renderer, 8).sample(prompts, 4, params)
    monkeypatch.setattr(module, "_layers", lambda model: [])
    without = InProcessSampler(model, renderer, 8).sample(prompts, 4, params)
    assert seen and seen[0] > 0, "they were packed"
    assert [[s.token_ids for s in each] for each in with_copies] == [[s.token_ids for s in each] for each in without]
    for one, other in zip(chain(*with_copies), chain(*without), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_where_they_do_not_pay_nothing_is_packed(tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of inference mode weights may learn; where memory is short there is no room for copies."""
    model = load_policy(tiny_policy_path).eval()
    with packed_weights(model, 8):
        assert not packed(model)
    with torch.inference_mode():
        monkeypatch.setattr(module, "SHARE", 0.0)
        with packed_weights(model, 8):
            assert not packed(model)
        monkeypatch.undo()
        with packed_weights(model, 8):
            assert not packed(model), "all its matrices are small"


def test_layers_are_as_they_were_after_a_failure(tiny_policy_path: Path) -> None:
    model = load_policy(tiny_policy_path).eval()
    with torch.inference_mode(), pytest.raises(ZeroDivisionError), packed_weights(model, 8):
        assert packed(model)
        raise ZeroDivisionError
    assert not packed(model)
