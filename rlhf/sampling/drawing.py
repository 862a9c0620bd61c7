"""From logits and uniform numbers to tokens: inverse-CDF draws whose chance belongs to the sample, not to the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf.sampling.protocol import SamplingParams

_WORD = (1 << 64) - 1


def uniforms(seed: int, samples: Sequence[tuple[int, int]], length: int) -> Tensor:
    """(n, length) float32 in [0, 1): row r is the stream of samples[r] = (key, index), one number a token.

    Philox with the key (seed, key) and `index` in the counter's highest word: a function of these three alone, and a
    shorter row is the beginning of a longer one.
    """
    rows = np.empty((len(samples), length), dtype=np.float32)
    for row, (key, index) in zip(rows, samples, strict=True):
        philox = np.random.Philox(key=[seed & _WORD, key & _WORD], counter=[0, 0, 0, index])
        np.random.Generator(philox).random(dtype=np.float32, out=row)
    return torch.from_numpy(rows)


class Drawn(NamedTuple):
    """tokens (n,) int64; their log-probability (n,) float32 under the model and under what they were drawn from."""

    tokens: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor


def draw(logits: Tensor, uniform: Tensor, params: SamplingParams, seen: Tensor | None = None) -> Drawn:
    """Draw one token a row.

    Order as in transformers: repetition penalty, temperature, then top-k, then top-p (the token that crosses top_p is
    kept).

    Args:
        logits: (n, V), any float dtype.
        uniform: (n,) float32 in [0, 1).
        params: temperature, top_k, top_p, repetition_penalty are read.
        seen: (n, V) bool, the tokens that the penalty strikes; None: none.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp()
    penalised = logits if seen is None else _penalised(logits, seen, params.repetition_penalty)
    if params.temperature == 0:
        tokens = penalised.argmax(-1, keepdim=True)
        logprobs = logits.gather(-1, tokens) - top - weights.sum(-1, keepdim=True).log()
        return Drawn(tokens.squeeze(-1), logprobs.squeeze(-1), torch.zeros_like(uniform))
    plain = seen is None and params.temperature == 1
    if not plain:
        scaled = penalised / params.temperature
        sharpened = (scaled - scaled.amax(-1, keepdim=True)).exp()
    tokens, sampling_logprobs = _inverse_cdf(weights if plain else sharpened, uniform, params)
    if plain and params.top_p == 1 and params.top_k == 0:
        logprobs = sampling_logprobs
    else:
        logprobs = logits.gather(-1, tokens) - top - weights.sum(-1, keepdim=True).log()
    return Drawn(tokens.squeeze(-1), logprobs.squeeze(-1), sampling_logprobs.squeeze(-1))


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _inverse_cdf(weights: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """weights (n, V), not normalised -> tokens (n, 1) and their log-probability among the kept ones (n, 1)."""
    order = None
    if 0 < params.top_k < weights.shape[-1]:
        weights, order = weights.topk(params.top_k, dim=-1)
    if params.top_p < 1:
        least = params.top_p * weights.sum(-1, keepdim=True)
        if order is None:
            weights, order = _nucleus(weights, least)
        else:
            weights = _cut(weights, least)
    cdf = weights.cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(uniform.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    # the first entry whose CDF lies above the target: never one of weight 0, as target < total
    index = torch.searchsorted(cdf, target, right=True).clamp_(max=weights.shape[-1] - 1)
    logprobs = (weights.gather(-1, index) / total).log()
    return index if order is None else order.gather(-1, index), logprobs


def _cut(weights: Tensor, least: Tensor) -> Tensor:
    """weights (n, k) in falling order; 0 behind the first that makes their sum reach `least` (n, 1)."""
    before = weights.cumsum(-1) - weights
    return weights.masked_fill(before >= least, 0.0)


_TRIED = (64, 256)  # numbers of likeliest tokens in which the nucleus is sought, before all are sorted
_BLOCK = 64


def _nucleus(weights: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The fewest largest weights whose sum reaches `least`, in falling order, equal ones by token; the rest is 0.

    As a stable sort of the whole vocabulary gives it, bit for bit, but sought among the largest weights first: those
    hold it where its smallest member is above the smallest of them, so that no equal one can lie outside.

    Args:
        weights: (n, V), at least 0.
        least: (n, 1).

    Returns:
        weights (n, k) and their tokens (n, k), with k the number that every row's nucleus lies within.
    """
    rows, size = weights.shape
    left = torch.arange(rows, device=weights.device)  # rows whose nucleus is not found yet
    nucleus, order = weights.new_empty(rows, 0), left.new_empty(rows, 0)
    for count in (*(tried for tried in _TRIED if tried * _BLOCK <= size), size):
        own = weights if len(left) == rows else weights[left]
        if count < size:
            largest, tokens = _largest(own, count)
        else:
            largest, tokens = own.sort(dim=-1, descending=True, stable=True)
        kept = _cut(largest, least[left])
        wider = (0, count - nucleus.shape[-1])
        nucleus, order = torch.nn.functional.pad(nucleus, wider), torch.nn.functional.pad(order, wider)
        nucleus[left], order[left] = kept, tokens
        left = left[((kept > 0) & (kept == largest[:, -1:])).any(-1)]
        if not len(left):
            break
    return nucleus, order


def _largest(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest weights in falling order and their tokens, (n, count); equal ones by token.

    Of the weights that equal the smallest one returned, any may be missing. They lie in the blocks of the vocabulary
    with the largest maxima: outside of `count` such blocks no weight is above the smallest of those maxima.
    """
    n, size = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -size % _BLOCK), value=-1.0) if size % _BLOCK else weights
    blocks = padded.view(n, -1, _BLOCK)
    chosen = blocks.amax(-1).topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    inside = blocks.gather(1, chosen.unsqueeze(-1).expand(-1, -1, _BLOCK)).view(n, -1)
    places = inside.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values  # by token
    found, order = inside.gather(-1, places).sort(dim=-1, descending=True, stable=True)
    places = places.gather(-1, order)
    return found, chosen.gather(-1, places // _BLOCK) * _BLOCK + places % _BLOCK
