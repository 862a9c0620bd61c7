"""From two raw reward-model scores to the reward of each token.

Source: Llama 2 paper, section 3.2.3 (equations 3 and 4); decisions 29 to 31. The paper gates on sigmoid(r) and then
takes the logit; logit(sigmoid(r)) = r, so everything here works on r, and nothing is clamped or saturates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf.objectives.shapes import require_same_shape

SAFETY_THRESHOLD = 0.15
"""A safety score (after the sigmoid) below this hands the reward to the safety model. Paper, section 3.2.3."""

SAFETY_THRESHOLD_LOGIT = math.log(SAFETY_THRESHOLD / (1 - SAFETY_THRESHOLD))
"""The same threshold for raw scores: -1.734601."""


def gate(
    helpfulness: Tensor, safety: Tensor, tagged_safety: Tensor, threshold: float = SAFETY_THRESHOLD
) -> tuple[Tensor, Tensor]:
    """The paper's R_c: the safety score where the prompt is tagged safety or the safety score is low, else helpfulness.

    Args:
        helpfulness: (n,) raw scores (before the sigmoid), less their origin.
        safety: (n,) the same.
        tagged_safety: (n,) bool, True for prompts of domain "safety".
        threshold: "low" is a safety score after the sigmoid below this, strictly: 0.15 is not below 0.15.

    Returns:
        rewards (n,), raw, in the scores' dtype; used_safety (n,) bool.

    Raises:
        ValueError: the shapes differ, or the threshold lies outside (0, 1).
    """
    require_same_shape(helpfulness=helpfulness, safety=safety, tagged_safety=tagged_safety)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: must lie between 0 and 1, got {threshold}")
    used_safety = tagged_safety.bool() | (safety < math.log(threshold / (1 - threshold)))
    return torch.where(used_safety, safety, helpfulness), used_safety


def ensemble_reward(scores: Tensor, uncertainty_weight: float = 0.0) -> Tensor:
    """Mean over an ensemble less `uncertainty_weight` times its standard deviation, (n,) float32.

    Source: Coste et al. 2023 (arXiv 2310.02743), uncertainty-weighted optimisation. They take off the variance; the
    standard deviation (biased, as their variance is) has the unit of the scores, so that a weight suits every scale.

    Args:
        scores: (members, n) raw scores, any float dtype.
        uncertainty_weight: 0 is the plain mean.
    """
    scores = scores.float()
    return scores.mean(0) - uncertainty_weight * scores.std(0, correction=0)


def moments(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Count, sum and sum of squares of x where mask is True: (3,) float64.

    Sums of several processes add up: reduce them with "sum" and pass the result to `whiten(sums=...)`.
    """
    require_same_shape(x=x, mask=mask)
    kept = x.double() if mask is None else x.double().masked_fill(~mask.bool(), 0.0)
    count = torch.tensor(x.numel(), device=x.device) if mask is None else mask.bool().sum()
    return torch.stack([count.double(), kept.sum(), kept.square().sum()])


def whiten(
    x: Tensor, mask: Tensor | None = None, eps: float = 1e-8, shift_mean: bool = True, sums: Tensor | None = None
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the elements of the mask, with the biased variance; 0 elsewhere.

    The paper whitens the gated reward (section 3.2.3) and does not say over what: here over the global batch
    (decision 29).

    Args:
        x: any shape, float.
        mask: x's shape, bool; None is all of x.
        eps: added to the variance.
        shift_mean: False keeps the mean and only scales the spread.
        sums: (3,) from `moments`, summed over processes; None takes those of x itself.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: the shapes differ.
    """
    count, total, squares = moments(x, mask) if sums is None else sums.double()
    require_same_shape(x=x, mask=mask)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0.0)
    white: Tensor = (x.double() - mean) * torch.rsqrt(variance + eps)
    if not shift_mean:
        white = white + mean
    if mask is not None:
        white = white.masked_fill(~mask.bool(), 0.0)
    return white.to(x.dtype)


def missing_end_penalty(scores: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """Scores (n,) less `penalty` where the answer was cut off before its end token (finished (n,) bool is False).

    Not in the paper (decision 31); 0 turns it off.
    """
    require_same_shape(scores=scores, finished=finished)
    return torch.where(finished.bool(), scores, scores - penalty)


def neutral_unfinished(rewards: Tensor, finished: Tensor, prompts: Tensor) -> Tensor:
    """Rewards with those of unfinished answers replaced by what was to be expected of a finished one.

    That is the mean of the finished answers to the same prompt, or where there are none of all finished ones, so that
    of being cut off the penalty alone tells. Where nothing is finished there is nothing to expect by: all are 0, none
    better than another. Reward models are trained on whole answers; what they say of one that
    breaks off may be anything: on HH's harmless pairs such answers are the preferred ones.

    Args:
        rewards: (n,) float.
        finished: (n,) bool.
        prompts: (n,) int64 from 0, which prompt each answers.

    Returns:
        (n,) in rewards' dtype.
    """
    require_same_shape(rewards=rewards, finished=finished, prompts=prompts)
    finished = finished.bool()
    if not bool(finished.any()):
        return torch.zeros_like(rewards)
    of_all = rewards[finished].mean()
    counts, sums = (
        rewards.new_zeros(int(prompts.max()) + 1).index_add(0, prompts[finished], x)
        for x in (torch.ones_like(rewards[finished]), rewards[finished])
    )
    expected = torch.where(counts > 0, sums / counts.clamp(min=1), of_all)
    return torch.where(finished, rewards, expected[prompts])


def token_rewards(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Reward of each token: -beta (log pi - log reference), and the answer's score on its last token.

    Summed over tokens this is the paper's R(g|p) (equation 4) with the k1 estimate of the KL.

    Args:
        logprobs: (n, T) of the sampled tokens under the policy that sampled them.
        ref_logprobs: (n, T) under the reference.
        mask: (n, T) bool, True on the answer's tokens, its end token included; values elsewhere are not looked at.
        scores: (n,) reward of each answer (gated, whitened).
        beta: weight of the KL.

    Returns:
        (n, T) in logprobs' dtype, 0 outside the mask.

    Raises:
        ValueError: the shapes differ, or a row of the mask is empty (its score would have no token to sit on).
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    require_same_shape(scores=scores, mask_rows=mask[:, 0])
    mask = mask.bool()
    if not bool(mask.any(dim=1).all()):
        raise ValueError("mask: every row needs at least one answer token to carry its score")
    rewards = (-beta * (logprobs - ref_logprobs)).masked_fill(~mask, 0.0)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(dim=1, keepdim=True)
    return rewards.scatter_add(1, last, scores.to(rewards).unsqueeze(1))
