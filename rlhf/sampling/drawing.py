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
        if order is None:
            weights, order = weights.sort(dim=-1, descending=True, stable=True)
        before = weights.cumsum(-1) - weights
        weights = weights.masked_fill(before >= params.top_p * weights.sum(-1, keepdim=True), 0.0)
    cdf = weights.cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(uniform.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    # the first entry whose CDF lies above the target: never one of weight 0, as target < total
    index = torch.searchsorted(cdf, target, right=True).clamp_(max=weights.shape[-1] - 1)
    logprobs = (weights.gather(-1, index) / total).log()
    return index if order is None else order.gather(-1, index), logprobs
