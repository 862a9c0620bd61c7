"""Direct Preference Optimization: preferences trained on without a reward model or samples (arXiv 2305.18290).

The baseline beside the paper's pipeline, which does not have it. All is per pair, so that the caller divides by the
count of the whole step.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rlhf.objectives.shapes import require_same_shape


def implicit_reward(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """beta times the log-ratio of policy to reference, (n,) float32: the reward that DPO's policy is the optimum of.

    Args:
        policy, reference: (n,) log-probabilities of whole answers, sums over their tokens, end token included.
        beta: weight of the KL to the reference.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(policy=policy, reference=reference)
    return beta * (policy.float() - reference.float())


def dpo_loss(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """Loss of each pair, (n,) float32: -log sigmoid(chosen_reward - rejected_reward). Equation 7; log 2 at the start.

    Args:
        chosen_reward, rejected_reward: (n,) implicit rewards.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(chosen_reward=chosen_reward, rejected_reward=rejected_reward)
    return -F.logsigmoid(chosen_reward - rejected_reward)
