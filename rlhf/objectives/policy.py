"""Pure functions of policy optimisation: token log-probabilities, KL estimators and controller, PPO's clipped losses.

Source: Llama 2 paper, section 3.2.3; decisions 30, 36, 41. PPO: Schulman et al. 2017 (arXiv 1707.06347), KL estimators
k1, k2, k3: Schulman, "Approximating KL Divergence" (2020). Advantages are in `rlhf.objectives.advantages`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf.objectives.shapes import require_same_shape


class _TokenLogprobs(torch.autograd.Function):
    """Chosen logit minus logsumexp, in float32 block by block: beside the logits, memory for one block only.

    The temperature divides within a block, after the cast: no tempered copy of the logits is made.

    log_softmax would keep a float32 copy of all the logits for the backward pass, often the largest tensor of a step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        rows = logits.reshape(-1, logits.shape[-1])
        normaliser = torch.empty(len(rows), dtype=torch.float32, device=logits.device)
        for block in _blocks(rows):
            normaliser[block] = _tempered(rows[block], temperature).logsumexp(dim=-1)
        ctx.save_for_backward(logits, ids, normaliser)
        ctx.temperature = temperature
        chosen = rows.gather(1, ids.reshape(-1, 1)).squeeze(1)
        return (_tempered(chosen, temperature) - normaliser).view(ids.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, normaliser = ctx.saved_tensors
        rows = logits.reshape(-1, logits.shape[-1])
        chosen, normaliser = ids.reshape(-1, 1), normaliser.unsqueeze(1)
        grad = _tempered(grads[0].reshape(-1, 1), ctx.temperature)  # d (z / T) / dz
        out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for block in _blocks(rows):
            probabilities = (_tempered(rows[block], ctx.temperature) - normaliser[block]).exp_()
            out[block] = probabilities.mul_(-grad[block]).scatter_add_(1, chosen[block], grad[block])
        return out.view(logits.shape), None, None


def _tempered(x: Tensor, temperature: float) -> Tensor:
    """x / temperature in float32; at 1 x itself, bit for bit."""
    return x.float() if temperature == 1 else x.float() / temperature


def _blocks(rows: Tensor) -> list[slice]:
    """Slices of rows (N, V), each about a megabyte of float32 on the CPU (its cache), 64 elsewhere (few launches)."""
    size = max(1, (1 << (18 if rows.device.type == "cpu" else 24)) // rows.shape[1])
    return [slice(start, start + size) for start in range(0, rows.shape[0], size)]


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each id, (..., T) float32 whatever the logits' dtype; without a copy of the logits.

    Args:
        logits: (..., T, V), any float dtype; position t holds the distribution that ids[t] was drawn from.
        ids: (..., T) int64, in [0, V).
        temperature: above 0; the distribution is softmax(logits / temperature), and so is the gradient's.

    Raises:
        ValueError: ids' shape is not logits' without its last axis.
    """
    require_same_shape(logits=logits[..., 0], ids=ids)
    logprobs: Tensor = _TokenLogprobs.apply(logits, ids, temperature)  # type: ignore[no-untyped-call]
    return logprobs


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of each softmax(logits / temperature): logits (..., T, V) -> (..., T) float32, block by block."""
    rows = logits.reshape(-1, logits.shape[-1])
    tempered = (_tempered(rows[block], temperature) for block in _blocks(rows))
    parts = [torch.special.entr(block.softmax(dim=-1)).sum(dim=-1) for block in tempered]
    return torch.cat(parts).view(logits.shape[:-1])


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log p - log q of tokens drawn from p: unbiased for KL(p || q), can be negative. Same shapes in and out."""
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2 of tokens drawn from p: biased, never negative, low variance. Same shapes in and out."""
    return kl_k1(logprobs, ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) of tokens drawn from p: unbiased for KL(p || q) and never negative. Same shapes in and out."""
    log_ratio = -kl_k1(logprobs, ref_logprobs)
    return torch.expm1(log_ratio) - log_ratio


def adapted_beta(beta: float, kl: float, target: float) -> float:
    """The next iteration's weight of the KL, so that the KL approaches `target`: beta (1 + 0.1 e).

    e = clip(kl / target - 1, -0.2, 0.2): the proportional controller of Ziegler et al. 2019 (arXiv 1909.08593, section
    2.2), with its constants; beta moves by 2 % an iteration at most.

    Args:
        beta: above 0.
        kl: of this iteration's answers, nats per answer.
        target: above 0, the same unit.
    """
    return beta * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's loss of each token, (n, T): -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), ratio = exp(logprobs - old).

    Args:
        logprobs: (n, T) under the policy being trained; carries the gradient.
        old_logprobs: (n, T) under the policy at the start of the iteration.
        advantages: (n, T).
        clip: the paper uses 0.2.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = torch.exp(logprobs - old_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_share(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """(n, T) float32: 1 where the clip leaves `clipped_policy_loss` without a gradient, else 0. Its mean is logged."""
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = torch.exp(logprobs - old_logprobs)
    held = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    return held.float()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """Value loss of each token, (n, T): max((V - R)^2, (V_clipped - R)^2) / 2, V_clipped within old_values +- clip.

    The paper gives no value loss; this is the common one (decision 36).

    Args:
        values: (n, T) of the value model being trained; carries the gradient.
        old_values: (n, T) at the start of the iteration.
        returns: (n, T) from `rlhf.objectives.advantages.gae`.
        clip: in units of the reward.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns)
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (kept - returns).square()) / 2
