"""From logits and uniform numbers to tokens: inverse-CDF draws whose chance belongs to the sample, not to the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf.sampling.protocol import SamplingParams

_WORD = (1 << 64) - 1
_CACHED = 1 << 19  # logits that a CPU's caches hold while a token is drawn from them


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
    rows = max(1, _CACHED // logits.shape[-1])
    if logits.device.type == "cpu" and len(logits) > rows:
        parts = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        drawn = [draw(logits[i], uniform[i], params, None if seen is None else seen[i]) for i in parts]
        return Drawn(*(torch.cat(columns) for columns in zip(*drawn, strict=True)))
    own = logits.float()
    top = own.amax(-1, keepdim=True)
    penalised = None if seen is None else _penalised(own, seen, params.repetition_penalty)
    centred = own - top if own is logits else own.sub_(top)
    if params.temperature == 0:
        tokens = (centred if penalised is None else penalised).argmax(-1, keepdim=True)
        sampling_logprobs = torch.zeros_like(uniform)[:, None]
    else:
        scaled = centred if penalised is None else penalised - penalised.amax(-1, keepdim=True)
        scaled = scaled if params.temperature == 1 else scaled / params.temperature
        tokens, sampling_logprobs = _inverse_cdf(scaled, uniform, params)
        if scaled is centred and params.top_p == 1 and params.top_k == 0:
            return Drawn(*(column.squeeze(-1) for column in (tokens, sampling_logprobs, sampling_logprobs)))
    chosen = centred.gather(-1, tokens)
    logprobs = chosen - centred.exp_().sum(-1, keepdim=True).log()
    return Drawn(*(column.squeeze(-1) for column in (tokens, logprobs, sampling_logprobs)))


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _inverse_cdf(scaled: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """scaled (n, V), log-weights, a row's largest 0 -> tokens (n, 1), their log-probability among those kept (n, 1)."""
    order = None
    if 0 < params.top_k < scaled.shape[-1]:
        partly = params.top_k * _BLOCK <= scaled.shape[-1]
        scaled, order = _largest(scaled, params.top_k) if partly else scaled.topk(params.top_k, dim=-1)
    weights = scaled.exp()
    if params.top_p < 1:
        least = params.top_p * weights.sum(-1, keepdim=True)
        if order is None:
            weights, order = _nucleus(weights, least)
        else:
            weights = _cut(weights, least)
    if order is None:
        return _in_two_levels(weights, uniform)
    index, total = _first_above(weights, uniform[:, None])
    return order.gather(-1, index), (weights.gather(-1, index) / total).log()


def _in_two_levels(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """`_inverse_cdf` of all tokens: first the block of the vocabulary, then the token in it.

    A running sum over the whole vocabulary would take as long as all else here.
    """
    sums = _by_block(weights, torch.sum)
    block, total = _first_above(sums, uniform[:, None])
    before = (sums.cumsum(-1) - sums).gather(-1, block)
    inside = _of_blocks(weights, block, 0.0)
    place, _ = _first_above(inside, (uniform[:, None] * total - before) / sums.gather(-1, block))
    tokens = (block * _BLOCK + place).clamp_(max=weights.shape[-1] - 1)  # beyond only where there is no number (NaN)
    return tokens, (inside.gather(-1, place) / total).log()


def _first_above(weights: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry (n, 1) whose running sum lies above `share` (n, 1) of the total, and the total (n, 1).

    Never one of weight 0, for the share is taken to be below 1.
    """
    cdf = weights.cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(share.clamp(min=0.0) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).clamp_(max=weights.shape[-1] - 1), total


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
    chosen = _by_block(weights, torch.amax).topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    inside = _of_blocks(weights, chosen, -torch.inf)
    places = inside.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values  # by token
    found, order = inside.gather(-1, places).sort(dim=-1, descending=True, stable=True)
    places = places.gather(-1, order)
    return found, chosen.gather(-1, places // _BLOCK) * _BLOCK + places % _BLOCK


def _by_block(weights: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """(n, V) -> (n, blocks), the sum or the maximum of each; the last block may be shorter."""
    n, size = weights.shape
    whole = reduce(weights[:, : size - size % _BLOCK].view(n, size // _BLOCK, _BLOCK), -1)
    return torch.cat([whole, reduce(weights[:, -(size % _BLOCK) :], -1, keepdim=True)], -1) if size % _BLOCK else whole


def _of_blocks(weights: Tensor, blocks: Tensor, padding: float) -> Tensor:
    """(n, V), (n, b) -> (n, b * _BLOCK), the weights of these blocks, `padding` behind the last token."""
    places = (blocks[..., None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)).flatten(1)
    last = weights.shape[-1] - 1
    return weights.gather(1, places.clamp(max=last)).masked_fill(places > last, padding)
