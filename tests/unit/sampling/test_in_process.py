from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from host_looks import HostLooks
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    LlamaForCausalLM,
    Mamba2Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RecurrentGemmaConfig,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.models.config import AdapterConfig
from rlhf.models.packing import has_plain_attention
from rlhf.models.policy import load_policy
from rlhf.sampling import in_process, memory
from rlhf.sampling.decoding import decoder
from rlhf.sampling.decoding.decoder import Decoder, Owner
from rlhf.sampling.decoding.shared_prefix import SharedPrefix, sharing
from rlhf.sampling.early_rejection import EarlyRejection, EarlyRejectionConfig
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import Sample, SamplingParams

WORDS = [
    "what",
    "is",
    "the",
    "river",
    "of",
    "velda",
    "how",
    "do",
    "I",
    "paint",
    "my",
    "own",
    "goat",
    "please",
    "answer",
]
PARAMS = SamplingParams(max_new_tokens=24, temperature=1.1, top_p=0.95, seed=11)


def user(text: str) -> Conversation:
    return [{"role": "user", "content": text}]


PROMPTS = [user(" ".join(WORDS[: 1 + 3 * i % 14])) for i in range(9)]


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer: PreTrainedTokenizerFast) -> Renderer:
    return Renderer(tiny_tokenizer)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_policy_path: Path, renderer: Renderer) -> LlamaForCausalLM:
    """sdpa shares the prompts' cache, eager repeats it. Sharper than the tiny policy, with an end token that comes."""
    model = LlamaForCausalLM.from_pretrained(tiny_policy_path, attn_implementation=request.param)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    bias = torch.zeros(model.config.vocab_size)
    bias[sorted(renderer.end_token_ids)] = 3.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    return model.eval()


def token_ids(samples: list[list[Sample]]) -> list[list[tuple[int, ...]]]:
    return [[sample.token_ids for sample in row] for row in samples]


def test_samples_are_the_same_for_any_number_of_rows(model: LlamaForCausalLM, renderer: Renderer) -> None:
    whole = InProcessSampler(model, renderer, rows=64).sample(PROMPTS, 6, PARAMS)
    for rows in (4, 1):
        parted = InProcessSampler(model, renderer, rows=rows).sample(PROMPTS, 6, PARAMS)
        assert token_ids(whole) == token_ids(parted)
        for row, other in zip(whole, parted, strict=True):
            assert [s.logprob for s in row] == pytest.approx([s.logprob for s in other], abs=1e-4)
    assert len({sample.token_ids for row in whole for sample in row}) > 40
    assert 0 < sum(sample.finished for row in whole for sample in row) < 54


def test_a_prompt_s_answers_are_given_out_when_the_last_of_them_ends(
    model: LlamaForCausalLM, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    admit = Decoder.admit

    def noted(self: Decoder, prompts: Sequence[list[int]], owners: Sequence[Owner]) -> None:
        begun.extend({owner.prompt for owner in owners})
        admit(self, prompts, owners)

    monkeypatch.setattr(Decoder, "admit", noted)
    sampler = InProcessSampler(model, renderer, rows=12)  # two prompts
    whole = sampler.sample(PROMPTS, 6, PARAMS)
    begun.clear()
    model.train()
    given: dict[int, list[Sample]] = {}
    for number, (p, answers) in enumerate(stream := sampler.stream(PROMPTS, 6, PARAMS)):
        given[p] = answers
        assert number or len(begun) < 5, "the first comes long before the last is begun"
        if number == 4:
            stream.close()  # type: ignore[attr-defined]
    assert token_ids([given[p] for p in sorted(given)]) == token_ids([whole[p] for p in sorted(given)])
    assert len(given) == 5 and model.training
    model.eval()


def letters(keys: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(sum(map(str.isalpha, text))) for text in texts])


@pytest.mark.parametrize(
    ("options", "rejection"),
    [
        ({"stop": ("e", "th")}, None),
        ({"repetition_penalty": 1.3, "top_k": 30}, None),
        ({}, EarlyRejectionConfig(at=(3, 8))),
        ({"stop": ("e",), "repetition_penalty": 1.3}, EarlyRejectionConfig(at=(2,), drop=0.7)),
    ],
)
def test_every_option_gives_the_same_samples_for_any_number_of_rows(
    options: dict[str, Any],
    rejection: EarlyRejectionConfig | None,
    model: LlamaForCausalLM,
    renderer: Renderer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches in which rows take the places of others early, and batches too small for a prompt's samples."""
    rejects = None if rejection is None else EarlyRejection(rejection, letters)
    params = replace(PARAMS, **options)
    whole = InProcessSampler(model, renderer, 64, rejects).sample(PROMPTS, 6, params)
    lengths = Counter(len(sample.token_ids) for row in whole for sample in row)
    assert len(lengths) > 3 and any(sample.finished for row in whole for sample in row)
    monkeypatch.setattr(in_process, "REFILL", 0.1)
    for rows in (4, 13) if rejection is None else (6, 13):
        parted = InProcessSampler(model, renderer, rows, rejects).sample(PROMPTS, 6, params)
        assert token_ids(parted) == token_ids(whole)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_policy_with_an_adapter_gives_the_same_samples_for_any_number_of_rows(
    quantization: Literal["nf4"] | None, tiny_policy_path: Path, renderer: Renderer
) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes")
    policy = load_policy(tiny_policy_path, adapter=AdapterConfig(r=4, alpha=64), quantization=quantization)
    params = replace(PARAMS, max_new_tokens=12)
    untrained = token_ids(InProcessSampler(policy, renderer, 64).sample(PROMPTS, 4, params))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    whole = token_ids(InProcessSampler(policy, renderer, 64).sample(PROMPTS, 4, params))
    assert sum(one != other for one, other in zip(chain(*whole), chain(*untrained), strict=True)) > 20
    assert token_ids(InProcessSampler(policy, renderer, 3).sample(PROMPTS, 4, params)) == whole


def test_early_rejection_needs_a_prompt_s_samples_side_by_side(model: LlamaForCausalLM, renderer: Renderer) -> None:
    rejects = EarlyRejection(EarlyRejectionConfig(), letters)
    with pytest.raises(InputError, match=r"compares a prompt's 6 answers .* only 5 are written at once"):
        InProcessSampler(model, renderer, 5, rejects).sample(PROMPTS, 6, PARAMS)


def test_samples_follow_their_keys(model: LlamaForCausalLM, renderer: Renderer) -> None:
    sampler = InProcessSampler(model, renderer, rows=16)
    whole = token_ids(sampler.sample(PROMPTS, 3, PARAMS))
    order = [4, 0, 8, 3]
    some = token_ids(sampler.sample([PROMPTS[i] for i in order], 3, PARAMS, keys=order))
    assert some == [whole[i] for i in order]
    assert token_ids(sampler.sample(PROMPTS[:1], 2, PARAMS))[0] == whole[0][:2]
    assert token_ids(sampler.sample(PROMPTS[:1] * 2, 1, PARAMS)) != [whole[0][:1]] * 2


@pytest.mark.parametrize("refill", [0.0, 0.25, 1.0])
def test_rows_that_take_the_places_of_others_change_nothing(
    refill: float, model: LlamaForCausalLM, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = token_ids(InProcessSampler(model, renderer, rows=64).sample(PROMPTS, 6, PARAMS))
    cohorts: list[int] = []
    forward = Decoder.forward
    monkeypatch.setattr(in_process, "REFILL", refill)
    monkeypatch.setattr(Decoder, "forward", lambda self: (cohorts.append(len(self.cohorts)), forward(self)))
    for rows in (18, 7):
        assert token_ids(InProcessSampler(model, renderer, rows).sample(PROMPTS, 6, PARAMS)) == whole
    shared = has_plain_attention(model)
    assert (max(cohorts) > 1) == (shared and refill < 1)  # without a shared cache, and at 1, a cohort is alone


@pytest.mark.parametrize("padding", [0, in_process.PADDING])
def test_many_prompts_of_unlike_length_are_not_padded_to_the_longest(
    padding: int, model: LlamaForCausalLM, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below half of the longest they make another cohort, at once, where the cache is shared and padding is too much;
    and none is run with the longest."""
    monkeypatch.setattr(in_process, "PADDING", padding)
    prompts = [user(" ".join(WORDS[:1] * n)) for n in (1, 60, 2, 61)]
    alone = [
        token_ids(InProcessSampler(model, renderer).sample([p], 3, PARAMS, keys=[k]))[0] for k, p in enumerate(prompts)
    ]
    cohorts: list[int] = []
    forward = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self: (cohorts.append(len(self.cohorts)), forward(self)))
    passes, run = [], Decoder._run
    monkeypatch.setattr(Decoder, "_run", lambda self, ids, mask: passes.append(ids.numel()) or run(self, ids, mask))
    assert token_ids(InProcessSampler(model, renderer).sample(prompts, 3, PARAMS)) == alone
    shared, lengths = has_plain_attention(model), [len(ids) for ids in renderer.prompts(prompts)]
    assert cohorts[0] == (2 if shared and not padding else 1)
    if shared:
        assert sorted(passes) == [2 * max(lengths[0], lengths[2]), 2 * lengths[3]]


def test_many_prompts_are_run_in_passes_of_bounded_size(
    model: LlamaForCausalLM, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache is shared; what is written after them is the same."""
    whole = token_ids(InProcessSampler(model, renderer, rows=64).sample(PROMPTS, 6, PARAMS))
    longest = max(len(ids) for ids in renderer.prompts(PROMPTS))
    most = 2 * longest
    passes: list[int] = []
    run = Decoder._run
    monkeypatch.setattr(decoder, "batch_tokens_on", lambda device: most)
    monkeypatch.setattr(Decoder, "_run", lambda self, ids, mask: passes.append(ids.numel()) or run(self, ids, mask))
    assert token_ids(InProcessSampler(model, renderer, rows=64).sample(PROMPTS, 6, PARAMS)) == whole
    assert (max(passes) <= most) == has_plain_attention(model)
    assert sum(passes) >= sum(len(ids) for ids in renderer.prompts(PROMPTS))


def test_the_order_of_the_prompts_changes_nothing(model: LlamaForCausalLM, renderer: Renderer) -> None:
    order = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = InProcessSampler(model, renderer)
    whole = token_ids(sampler.sample(PROMPTS, 4, PARAMS))
    shuffled = token_ids(sampler.sample([PROMPTS[i] for i in order], 4, PARAMS, keys=order))
    assert [shuffled[order.index(i)] for i in range(len(PROMPTS))] == whole


def test_a_stop_text_ends_an_answer_and_is_cut_off(model: LlamaForCausalLM, renderer: Renderer) -> None:
    sampler = InProcessSampler(model, renderer, rows=16)
    free = sampler.sample(PROMPTS, 6, PARAMS)
    texts = " ".join(sample.text for row in free for sample in row)
    stop = tuple(pair for pair, _ in Counter(map("".join, pairwise(texts))).most_common(40))[3:9:3]
    stopped = sampler.sample(PROMPTS, 6, replace(PARAMS, stop=stop))
    ended = 0
    for before, after in zip(chain(*free), chain(*stopped), strict=True):
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        assert not any(one in after.text for one in stop)
        written = renderer.answer_text(after.token_ids)
        if any(one in written for one in stop):
            ended += 1
            assert after.finished and written.startswith(after.text)
            assert not any(one in renderer.answer_text(after.token_ids[:-1]) for one in stop)
        else:
            assert (after.token_ids, after.text, after.finished) == (before.token_ids, before.text, before.finished)
    assert 0 < ended < 54


@pytest.mark.parametrize("penalty", [1.7, 0.6])
def test_log_probabilities_are_those_of_transformers_processors(
    penalty: float, model: LlamaForCausalLM, renderer: Renderer
) -> None:
    params = replace(PARAMS, repetition_penalty=penalty, temperature=0.9, top_k=40, top_p=0.9)
    processors = [
        RepetitionPenaltyLogitsProcessor(penalty),
        TemperatureLogitsWarper(0.9),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.9),
    ]
    for prompt, row in zip(PROMPTS, InProcessSampler(model, renderer, 12).sample(PROMPTS, 4, params), strict=True):
        start = renderer.prompt_ids(prompt)
        for sample in row:
            ids = torch.tensor([start + list(sample.token_ids)])
            with torch.no_grad():
                logits = model(ids).logits
            expected = 0.0
            for position in range(len(start), ids.shape[1]):
                scores = logits[:, position - 1]
                for processor in processors:
                    scores = processor(ids[:, :position], scores)
                expected += scores.log_softmax(-1)[0, ids[0, position]].item()
            assert sample.sampling_logprob == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_generate(penalty: float, model: LlamaForCausalLM, renderer: Renderer) -> None:
    params = SamplingParams(temperature=0, max_new_tokens=24, repetition_penalty=penalty)
    samples = InProcessSampler(model, renderer, rows=4).sample(PROMPTS, 1, params)
    for prompt, (sample,) in zip(PROMPTS, samples, strict=True):
        ids = torch.tensor([renderer.prompt_ids(prompt)])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=24,
            eos_token_id=sorted(renderer.end_token_ids),
        )
        assert list(sample.token_ids) == whole[0, ids.shape[1] :].tolist()


def test_logprob_is_that_of_a_plain_forward_at_temperature_one(model: LlamaForCausalLM, renderer: Renderer) -> None:
    samples = InProcessSampler(model, renderer).sample(PROMPTS, 4, PARAMS)
    for prompt, row in zip(PROMPTS, samples, strict=True):
        start = renderer.prompt_ids(prompt)
        for sample in row:
            ids = torch.tensor([start + list(sample.token_ids)])
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(start) - 1 :, 0]
            assert sample.logprob == pytest.approx(logprobs.sum().item(), abs=1e-4)


def test_an_end_token_is_the_last_and_makes_the_answer_finished(model: LlamaForCausalLM, renderer: Renderer) -> None:
    for row in InProcessSampler(model, renderer).sample(PROMPTS, 8, PARAMS):
        for sample in row:
            ends = [i for i, token in enumerate(sample.token_ids) if token in renderer.end_token_ids]
            assert ends == ([len(sample.token_ids) - 1] if sample.finished else [])
            assert sample.finished or len(sample.token_ids) == 24
            assert sample.text == renderer.answer_text(sample.token_ids)
            assert "</s>" not in sample.text


def test_first_tokens_follow_the_model(model: LlamaForCausalLM, renderer: Renderer) -> None:
    n = 4000
    samples = InProcessSampler(model, renderer, rows=1000).sample(PROMPTS[:1], n, SamplingParams(max_new_tokens=1))
    counts = Counter(sample.token_ids[0] for sample in samples[0])
    with torch.no_grad():
        probability = model(torch.tensor([renderer.prompt_ids(PROMPTS[0])])).logits[0, -1].softmax(-1)
    kept = (n * probability >= 5).nonzero().flatten().tolist()
    rest = n * (1 - probability[kept].sum().item())
    pairs = [(counts[token], n * probability[token].item()) for token in kept]
    pairs.append((n - sum(count for count, _ in pairs), rest))
    chi_squared = sum((count - expected) ** 2 / expected for count, expected in pairs)
    assert chi_squared < len(kept) + 4 * (2 * len(kept)) ** 0.5


def test_an_answer_is_cut_at_the_context_whatever_else_is_in_the_batch(
    model: LlamaForCausalLM, renderer: Renderer
) -> None:
    context = model.config.max_position_embeddings
    long = user(" ".join(["goat"] * 75))
    room = context - len(renderer.prompt_ids(long))
    assert 0 < room < 40
    params = SamplingParams(max_new_tokens=60, temperature=1.0, top_k=20)
    sampler = InProcessSampler(model, renderer, too_long="unfinished")
    (alone,) = sampler.sample([long], 8, params)
    together = sampler.sample([PROMPTS[0], long], 8, params, keys=[5, 0])
    assert token_ids([alone]) == token_ids(together[1:])
    assert max(len(sample.token_ids) for sample in alone) == room


def test_a_prompt_longer_than_the_context_is_cut_from_the_left(
    model: LlamaForCausalLM, renderer: Renderer, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default it ends no run: it is answered as its end would be, with room for a whole answer. That is said, unless
    whoever asks has a rule, and has looked before."""
    long, params = user("hello " + "goat " * 300 + "what is"), SamplingParams(max_new_tokens=60, temperature=0)
    (cut,) = InProcessSampler(model, renderer).sample([long], 1, params)
    limited = Renderer(renderer.tokenizer, max_length=256 - 60, cut=True)
    assert 190 <= len(limited.prompt_ids(long)) <= 196
    said = "sampling: 1 of 1 prompts leave no room for 60 new tokens in the model's context of 256, and are cut to 196"
    assert said in capsys.readouterr().err
    assert cut == InProcessSampler(model, limited).sample([long], 1, params)[0]
    assert cut == InProcessSampler(model, renderer, too_long="cut").sample([long], 1, params)[0]
    assert "leave no room" not in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_can_be_refused_before_sampling(
    model: LlamaForCausalLM, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "admit", lambda *args: pytest.fail("sampled"))
    with pytest.raises(InputError, match=r"'goat goat.*tokens.*context of 256.*set too_long to cut"):
        InProcessSampler(model, renderer, too_long="refuse").sample([PROMPTS[0], user("goat " * 300)], 1, PARAMS)


def test_the_model_comes_back_as_it_was(model: LlamaForCausalLM, renderer: Renderer) -> None:
    attention = model.config._attn_implementation
    model.train()
    InProcessSampler(model, renderer).sample(PROMPTS[:2], 2, SamplingParams(max_new_tokens=2))
    assert model.training
    assert model.config._attn_implementation == attention
    model.eval()
    assert InProcessSampler(model, renderer).sample([], 2, PARAMS) == []


TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 2}
GROUPED = {**TINY, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}

STATES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 2}
RECURRENT = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32}
LATENT = {**GROUPED, "num_key_value_heads": 4, "first_k_dense_replace": 3, "q_lora_rank": 8, "kv_lora_rank": 8}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
HYBRID = {"head_dim": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64}


@pytest.mark.parametrize(
    ("config", "shared"),
    [
        (Qwen3Config(**GROUPED, head_dim=8), True),
        (GPT2Config(**TINY, bos_token_id=0, eos_token_id=1), True),
        (MistralConfig(**GROUPED, sliding_window=8), False),
        (Gemma2Config(**GROUPED, head_dim=8, sliding_window=8), False),
        (Qwen2Config(**GROUPED), True),
        (Mamba2Config(**STATES, head_dim=16, num_heads=4, n_groups=1, expand=2), False),
        (FalconH1Config(**GROUPED, **HYBRID), False),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_other_architectures(config: PreTrainedConfig, shared: bool, renderer: Renderer) -> None:
    """Learned positions, sliding windows, soft-capped logits, recurrent layers: all have a plain forward's numbers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert has_plain_attention(model) == shared
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    for prompt, row in zip(
        PROMPTS[:3], InProcessSampler(model, renderer, 7).sample(PROMPTS[:3], 3, PARAMS), strict=True
    ):
        start = renderer.prompt_ids(prompt)
        for sample in row:
            ids = torch.tensor([start + list(sample.token_ids)])
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits
                logprobs = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(start) - 1 :, 0]
            assert sample.logprob == pytest.approx(logprobs.sum().item(), abs=1e-3)


def test_a_model_that_keeps_its_state_to_itself_is_refused(renderer: Renderer) -> None:
    model = AutoModelForCausalLM.from_config(RecurrentGemmaConfig(**RECURRENT))
    with pytest.raises(InputError, match="recurrent_gemma keeps its state"):
        InProcessSampler(model, renderer).sample(PROMPTS[:1], 2, PARAMS)


def test_a_model_whose_cache_is_compressed(renderer: Renderer) -> None:
    """DeepSeek's attention sees other keys than the cache holds, so the cache is repeated, not shared."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(DeepseekV3Config(**LATENT)).eval()
    (row,) = InProcessSampler(model, renderer).sample(PROMPTS[:1], 3, PARAMS)
    start = renderer.prompt_ids(PROMPTS[0])
    for sample in row:
        ids = torch.tensor([start + list(sample.token_ids)])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(start) - 1 :, 0]
        assert sample.logprob == pytest.approx(logprobs.sum().item(), abs=1e-3)


def test_rows_at_once_fit_into_the_free_memory(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 layers x 1 key-value head x 16 numbers x 2 x 4 bytes per token; 32 bytes per vocabulary entry."""
    row = 512 * 1 * (40 + 80 / 4) / 2 + 32 * model.config.vocab_size
    params = SamplingParams(max_new_tokens=40)
    for rows in (1, 64):
        for fitting in (rows + 0.5, 2 * rows - 0.5):
            free = SimpleNamespace(available=fitting * row / memory.SHARE)
            monkeypatch.setattr("psutil.virtual_memory", lambda free=free: free)
            assert memory.rows_at_once(model, 80, 4, params) == rows
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.rows_at_once(model, 80, 4, params) == 32
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10))
    assert memory.rows_at_once(model, 80, 4, params) == 1
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**15))
    assert memory.rows_at_once(model, 80, 4, params) == memory.ON_CPU


def test_rows_at_once_count_what_torch_has_kept_of_the_gpu(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tensors that are gone: an earlier policy's cache is room for this one's."""
    row = 512 * 1 * (40 + 80 / 4) / 2 + 32 * model.config.vocab_size
    on_gpu: Any = SimpleNamespace(config=model.config, dtype=model.dtype, device=torch.device("cuda", 0))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (int(10.5 * row / memory.SHARE), 0))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: int(60 * row / memory.SHARE))
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: int(5 * row / memory.SHARE))
    assert memory.rows_at_once(on_gpu, 80, 4, SamplingParams(max_new_tokens=40)) == 64


def _decoder(model: LlamaForCausalLM, renderer: Renderer) -> Decoder:
    """Six rows of two prompts, three tokens each, of which the first row has ended."""
    prompts = renderer.prompts(PROMPTS[:2])
    params = SamplingParams(max_new_tokens=8, seed=1)
    decoder = Decoder(model, 6, params, [], renderer.pad_token_id, 1 << 30)
    decoder.admit(prompts, [Owner(p, p, k) for p in range(2) for k in range(3)])
    for _ in range(2):
        decoder.draw()
        decoder.forward()
    decoder.draw()
    decoder.drop(torch.tensor([0]))
    decoder.forward()
    return decoder


@torch.inference_mode()
def test_under_autocast_the_cache_is_in_its_type(model: LlamaForCausalLM, renderer: Renderer) -> None:
    """Keys come out of rotary positions in float32: every step would cast all of them. The next logits are the same."""
    with sharing(model):
        plain = _decoder(model, renderer)
        with torch.autocast("cpu", torch.bfloat16):
            cast = _decoder(model, renderer)
        prefix = cast.cohorts[0].prefix
        if isinstance(prefix, SharedPrefix):
            held = [*prefix.keys, *prefix.values, *(part for own in prefix.own for part in (own.keys, own.values))]
        else:
            held = [part for layer in prefix.cache.layers for part in (layer.keys, layer.values)]
        assert {part.dtype for part in held} == {torch.bfloat16}
    same = (plain.tokens[plain.place] == cast.tokens[cast.place]).all(1)
    assert same.sum() >= 3
    difference = (plain.logits - cast.logits)[same].abs().max()
    assert difference < 0.1 * plain.logits.abs().max()


@torch.inference_mode()
def test_rows_that_leave_are_looked_at_once_for_all_layers(model: LlamaForCausalLM, renderer: Renderer) -> None:
    """On a GPU the host waits there for all that is under way."""
    with sharing(model):
        prefix = _decoder(model, renderer).cohorts[0].prefix
    assert len(prefix) == 5 and model.config.num_hidden_layers == 2
    with HostLooks() as looks:
        prefix.select(torch.tensor([0, 4, 2, 3]))
    assert looks.found == ["nonzero"]


@torch.inference_mode()
def test_a_token_is_looked_at_once(model: LlamaForCausalLM, renderer: Renderer) -> None:
    """For the rows that end with it; no layer looks."""
    with sharing(model):
        decoder = _decoder(model, renderer)
        with HostLooks() as looks:
            assert decoder.draw() == []
            decoder.forward()
    assert looks.found == ["nonzero"]
