from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.sampling.decoding import compiled
from rlhf.sampling.decoding.compiled import CompiledStep, step_shape
from rlhf.sampling.early_rejection import EarlyRejection, EarlyRejectionConfig
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import Sample, SamplingParams

PROMPTS: list[Conversation] = [[{"role": "user", "content": "goat river " * (1 + 5 * i % 7)}] for i in range(7)]
PARAMS = SamplingParams(max_new_tokens=20, temperature=1.1, top_p=0.95, seed=11)


@pytest.fixture
def model(tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Sharper than the tiny policy: its answers depend on what the cache holds; some come to their end."""
    model = LlamaForCausalLM.from_pretrained(tiny_policy_path, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    bias = torch.zeros(model.config.vocab_size)
    bias[sorted(Renderer(tiny_tokenizer).end_token_ids)] = 3.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    return model.eval()


def letters(keys: object, texts: list[str]) -> torch.Tensor:
    return torch.tensor([float(sum(map(str.isalpha, text))) for text in texts])


def require_same(one: list[list[Sample]], other: list[list[Sample]]) -> None:
    for row, expected in zip(one, other, strict=True):
        assert [s.token_ids for s in row] == [s.token_ids for s in expected]
        assert [s.logprob for s in row] == pytest.approx([s.logprob for s in expected], abs=1e-4)


@pytest.mark.parametrize("rejects", [False, True])
def test_steps_of_a_fixed_shape_write_the_same_answers(
    rejects: bool, model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of several lengths, rows that leave and others that take their places. Not compiled: it takes long."""
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    rejection = EarlyRejection(EarlyRejectionConfig(at=(3, 8)), letters) if rejects else None
    renderer = Renderer(tiny_tokenizer)
    whole = InProcessSampler(model, renderer, 64, rejection).sample(PROMPTS, 6, PARAMS)
    assert 0 < sum(sample.finished for row in whole for sample in row) < 42
    for rows in (13, 64):
        sampler = InProcessSampler(model, renderer, rows, rejection, compile=True)
        require_same(sampler.sample(PROMPTS, 6, PARAMS), whole)
        require_same(sampler.sample(PROMPTS[:3], 6, PARAMS), whole[:3])


def test_compiled_steps_write_the_same_answers(
    model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler on a CPU; install g++")
    renderer = Renderer(tiny_tokenizer)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    sampler = InProcessSampler(model, renderer, 16, compile=True)
    drawn = sampler.sample(PROMPTS, 6, PARAMS)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1 and sampler._step is not None
    require_same(drawn, InProcessSampler(model, renderer).sample(PROMPTS, 6, PARAMS))


def test_what_cannot_be_compiled_is_said(
    model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(fails, InvalidCxxCompiler(), None)

    monkeypatch.setattr(torch, "compile", lambda step, **options: fails)
    renderer = Renderer(tiny_tokenizer)
    with pytest.raises(InputError, match=r"compile: the model's step cannot be compiled here \(.*C\+\+ compiler"):
        InProcessSampler(model, renderer, compile=True).sample(PROMPTS, 2, PARAMS)
    model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="compile: works where all of a model's layers are plain full attention"):
        InProcessSampler(model, renderer, compile=True).sample(PROMPTS, 2, PARAMS)


def test_shapes_are_few(model: LlamaForCausalLM) -> None:
    assert step_shape(1, 1) == (1, compiled.BUCKET) and step_shape(33, 129) == (64, 256)
    assert step_shape(64, 128) == (64, 128) and CompiledStep(model, (4, 128)).shape == (4, 128)
