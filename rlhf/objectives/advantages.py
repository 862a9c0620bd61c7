"""Advantage estimators: GAE with a value model; RLOO and GRPO without one, from several answers to each prompt.

Source: GAE, Schulman et al. 2015 (arXiv 1506.02438). RLOO, Ahmadian et al. 2024 (arXiv 2402.14740). GRPO, Shao et al.
2024 (arXiv 2402.03300). The Llama 2 paper names PPO and no estimator (decision 34).

In all three the KL is a cost in the reward, k1 token by token, so that beta means the same. GRPO's paper adds k3 to the
loss instead, whose gradient is not that of KL(policy || reference) (Tang and Munos 2025, arXiv 2506.09477).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.objectives.shapes import require_same_shape


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over each row's answer, which ends its episode (no value after the last token).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where t+1 is the next position of the
    mask, so that padding on either side changes nothing.

    Args:
        rewards: (n, T) per token.
        values: (n, T); values[t] predicts the return from token t on, before it is drawn.
        mask: (n, T) bool, True on answer tokens; what stands elsewhere is not looked at.
        gamma: discount.
        lam: trade-off of bias (0) and variance (1).

    Returns:
        advantages and returns (advantages + values), each (n, T) float32, 0 outside the mask, without gradient.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(rewards=rewards, values=values, mask=mask)
    mask = mask.bool()
    rewards = rewards.detach().float().masked_fill(~mask, 0.0)
    values = values.detach().float().masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = advantage
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, advantages + values


def cross_moments(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Count, sum of x, sum of y, sum of x squared and sum of x y where mask is True: (5,) float64.

    Sums of several processes add up: reduce them with "sum" before `rising_line`.
    """
    require_same_shape(x=x, y=y, mask=mask)
    x, y = (t.detach().double().masked_fill(~mask.bool(), 0.0) for t in (x, y))
    return torch.stack([mask.sum().double(), x.sum(), y.sum(), x.square().sum(), (x * y).sum()])


def rising_line(sums: Tensor) -> tuple[float, float]:
    """The slope, 0 or above, and the intercept of the line that comes nearest to y from x, by least squares.

    Args:
        sums: (5,) from `cross_moments`.
    """
    count, x, y, squares, products = (float(figure) for figure in sums.tolist())
    spread = squares - x * x / count
    slope = max(0.0, products - x * y / count) / spread if spread > 1e-12 * squares else 0.0
    return slope, (y - slope * x) / count


def rloo(scores: Tensor, costs: Tensor) -> Tensor:
    """REINFORCE leave-one-out: each answer's return less the mean return of the prompt's other answers.

    An answer is one action: all its tokens get this advantage (arXiv 2402.14740, section 3.1 and equation 8). The
    baseline does not depend on the answer, so that the gradient is unbiased.

    Args:
        scores: (prompts, k), k >= 2 answers to each prompt.
        costs: (prompts, k) taken off: beta times the answer's KL, the sum of k1 over its tokens.

    Returns:
        (prompts, k); each row sums to 0.

    Raises:
        ValueError: the shapes differ, or k is 1.
    """
    returns = _returns(scores, costs)
    k = returns.shape[1]
    return (returns - returns.mean(1, keepdim=True)) * (k / (k - 1))


def grpo(scores: Tensor, costs: Tensor, eps: float = 1e-8) -> Tensor:
    """Group relative: each answer's score, whitened over the prompt's answers (arXiv 2402.03300, section 4.1.2).

    Departures (decision 38): the biased variance, as everywhere here; the KL's cost joins after the whitening, less its
    group mean, for a prompt whose answers all score the same would else learn nothing but the noise of the KL, at full
    size. The loss sums tokens and divides by all tokens of the step: the paper's mean over each answer's tokens first
    makes a long bad answer cheap (Liu et al. 2025, arXiv 2503.20783; Yu et al. 2025, arXiv 2503.14476).

    Args:
        scores: (prompts, k), k >= 2 answers to each prompt.
        costs: (prompts, k) taken off: beta times the answer's KL.
        eps: added to the variance.

    Returns:
        (prompts, k); each row sums to 0; 0 where all of a prompt's answers have the same score and cost.

    Raises:
        ValueError: the shapes differ, or k is 1.
    """
    _returns(scores, costs)
    centred = scores - scores.mean(1, keepdim=True)
    white = centred * torch.rsqrt(scores.var(1, correction=0, keepdim=True) + eps)
    return white - (costs - costs.mean(1, keepdim=True))


def _returns(scores: Tensor, costs: Tensor) -> Tensor:
    require_same_shape(scores=scores, costs=costs)
    if scores.shape[1] < 2:
        raise ValueError("scores: a group estimator needs at least 2 answers to each prompt")
    return scores - costs
