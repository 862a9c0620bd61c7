from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.sampling.decoding import drawing
from rlhf.sampling.decoding.drawing import draw, uniforms
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams

N = 40_000


def exact(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution that transformers' own warpers give, float64."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = logits.double()[None]
    scores = TemperatureLogitsWarper(float(params.temperature))(None, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.2, top_p=0.6, top_k=9),
    ],
)
def test_frequencies_follow_the_exact_distribution(params: SamplingParams) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(1)) * 2
    uniform = uniforms(seed=7, samples=[(i, 0) for i in range(N)], length=1)[:, 0]
    tokens, logprobs, sampling_logprobs = draw(logits.expand(N, -1), uniform, params)
    probability = exact(logits, params)
    counts = tokens.bincount(minlength=20).double()
    assert counts[probability == 0].sum() == 0
    kept = probability > 0
    expected = N * probability[kept]
    chi_squared = ((counts[kept] - expected) ** 2 / expected).sum().item()
    freedom = int(kept.sum()) - 1
    assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[tokens])
    torch.testing.assert_close(sampling_logprobs.double(), probability.log()[tokens], atol=1e-6, rtol=1e-6)


def test_the_edges_of_the_uniform_number_stay_inside_the_kept_tokens() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, -200.0, -torch.inf]]).expand(2, -1)
    edges = torch.tensor([0.0, 1 - 2**-24])
    assert draw(logits, edges, SamplingParams())[0].tolist() == [0, 2]
    assert draw(logits, edges, SamplingParams(top_k=2))[0].tolist() == [1, 0]
    assert draw(logits, edges, SamplingParams(top_p=0.01))[0].tolist() == [1, 1]


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]], dtype=torch.bfloat16)
    tokens, logprobs, sampling_logprobs = draw(logits, torch.tensor([0.99]), SamplingParams(temperature=0))
    assert tokens.tolist() == [1]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, logits.float().log_softmax(-1)[:, 1])
    assert sampling_logprobs.tolist() == [0.0]


def test_uniforms_belong_to_seed_key_and_index() -> None:
    rows = uniforms(3, [(5, 0), (5, 1), (6, 0)], 40)
    assert torch.equal(uniforms(3, [(6, 0)], 40)[0], rows[2])
    assert torch.equal(uniforms(3, [(5, 1)], 7)[0], rows[1, :7])
    assert not torch.equal(uniforms(4, [(5, 0)], 40)[0], rows[0])
    assert len(rows.unique()) == rows.numel()
    assert (rows >= 0).all() and (rows < 1).all()
    uniforms(-1, [(2**63, 0)], 1)


@pytest.mark.parametrize("penalty", [1.4, 0.7])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    """A token's probability under the penalty, read from its log-probability, for tokens seen and not seen."""
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(2)
    logits, ids = torch.randn(400, 12, generator=generator) * 2, torch.randint(12, (400, 5), generator=generator)
    seen = torch.zeros(400, 12, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    params = SamplingParams(repetition_penalty=penalty)
    tokens, logprobs, sampling_logprobs = draw(logits, torch.rand(400, generator=generator), params, seen)
    rows = torch.arange(400)
    torch.testing.assert_close(sampling_logprobs, expected.log_softmax(-1)[rows, tokens], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[rows, tokens], atol=1e-6, rtol=1e-6)
    greedy = SamplingParams(temperature=0, repetition_penalty=penalty)
    assert torch.equal(draw(logits, torch.zeros(400), greedy, seen).tokens, expected.argmax(-1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty: must be above 0"),
        ({"stop": "</answer>"}, "stop: must be a list of non-empty texts, got '</answer>'"),
        ({"stop": ("",)}, "stop: must be a list of non-empty texts"),
    ],
)
def test_bad_parameters_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingParams(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_nucleus_is_that_of_a_sort_of_the_whole_vocabulary(
    monkeypatch: pytest.MonkeyPatch, top_p: float, rounded: bool
) -> None:
    """The same tokens, bit for bit the same log-probabilities: peaked rows and flat ones in one batch, ties as well."""
    params = SamplingParams(top_p=top_p)
    sought: list[int] = []
    largest = drawing._largest

    def counted(weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        sought.append(count)
        return largest(weights, count)

    monkeypatch.setattr(drawing, "_largest", counted)
    sizes = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.tensor([[0.1], [2.0], [3.0], [4.0], [8.0], [30.0]])
        logits = torch.randn(6, 16_500, generator=generator) * scale  # no multiple of the blocks
        logits = logits.round() if rounded else logits
        uniform = torch.rand(6, generator=generator)
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        in_order, order = weights.sort(dim=-1, descending=True, stable=True)
        least = top_p * weights.sum(-1, keepdim=True)
        expected = drawing._cut(in_order, least)
        found, tokens = drawing._nucleus(weights, least)
        width = int((expected > 0).sum(-1).max())
        assert torch.equal(found[:, :width], expected[:, :width]) and not found[:, width:].any()
        kept = expected[:, :width] > 0
        assert torch.equal(tokens[:, :width][kept], order[:, :width][kept])
        sizes |= set((expected > 0).sum(-1).tolist())
        drawn = draw(logits, uniform, params)
        with monkeypatch.context() as patch:
            patch.setattr(drawing, "_TRIED", ())
            assert all(torch.equal(a, b) for a, b in zip(drawn, draw(logits, uniform, params), strict=True))
    assert set(sought) == {64, 256} and min(sizes) < 64 and max(sizes) > 256


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_model_that_writes_nan_is_refused(tiny_policy_path: Path, temperature: float) -> None:
    """Its weights are finite: half precision that overflows, or a config.json of another model. It drew some token."""
    model = load_policy(tiny_policy_path)
    model.model.rotary_emb.inv_freq.fill_(float("inf"))
    sampler = InProcessSampler(model, Renderer(load_tokenizer(tiny_policy_path)))
    params = SamplingParams(max_new_tokens=2, temperature=temperature)
    with pytest.raises(InputError, match=r"policy: .* writes what is no number \(NaN in its logits in float32"):
        sampler.sample([[{"role": "user", "content": "hello ?"}]], 2, params)


@pytest.mark.parametrize("size", [20, 64, 65, 640, 900])
@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0.7), SamplingParams(top_k=5), SamplingParams(temperature=0.7, top_p=0.9)],
)
@pytest.mark.parametrize("penalised", [False, True])
def test_rows_that_are_drawn_apart_are_the_same(
    monkeypatch: pytest.MonkeyPatch, size: int, params: SamplingParams, penalised: bool
) -> None:
    """As many at once as a CPU's caches hold, of vocabularies that are no multiple of a block, and of none."""
    generator = torch.Generator().manual_seed(size)
    logits, uniform = torch.randn(11, size, generator=generator) * 3, torch.rand(11, generator=generator)
    seen = torch.rand(11, size, generator=generator) < 0.3 if penalised else None
    params = replace(params, repetition_penalty=1.3 if penalised else 1.0)
    kept = logits.clone()
    whole = draw(logits, uniform, params, seen)
    monkeypatch.setattr(drawing, "_CACHED", 3 * size)
    for one, other in zip(draw(logits, uniform, params, seen), whole, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(logits, kept), "what was given is left as it was"
    if not penalised:
        probability = torch.stack([exact(row, params) for row in logits])
        found = probability.log().gather(1, whole.tokens[:, None]).squeeze(1)
        torch.testing.assert_close(whole.sampling_logprobs.double(), found, atol=1e-5, rtol=1e-5)
        cdf = probability.cumsum(1)
        if params.top_k == 0 and params.top_p == 1:
            before = cdf.gather(1, whole.tokens[:, None]).squeeze(1) - found.exp()
            assert ((before <= uniform + 1e-5) & (uniform <= before + found.exp() + 1e-5)).all()
