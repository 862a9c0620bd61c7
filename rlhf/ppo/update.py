"""PPO's update: clipped policy and value losses, one optimizer step a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor, nn

from rlhf.objectives.policy import clipped_policy_loss, clipped_share, clipped_value_loss
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.experience import Minibatch
from rlhf.training.step import Batch, LossFunction, Stepper


def ppo_loss(config: PPOConfig) -> LossFunction:
    """Loss function for `Stepper.step`: policy loss + value_coefficient x value loss, summed over answer tokens.

    Paper, section 3.2.3 (which names PPO without a formula); decision 36. Without a value model, the first alone.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # by name: in other arguments ZeRO-3's hooks look for tensors, and would warn of the packed rows
        logprobs, values, _ = model(batch=batch)
        old, advantages, mask = batch["old_logprobs"], batch["advantages"], batch["mask"]
        # off the mask: advantages, values and returns are 0 and both log-probabilities too, so every term is 0
        policy = clipped_policy_loss(logprobs, old, advantages, config.clip_range).sum()
        ratio = (logprobs.detach() - old).exp() * mask
        clipped = clipped_share(logprobs.detach(), old, advantages, config.clip_range)
        figures = {"policy_loss": policy, "ratio": ratio.sum(), "clip_fraction": clipped.sum()}
        if values is None:
            return policy, figures
        value = clipped_value_loss(values, batch["old_values"], batch["returns"], config.value_clip_range).sum()
        return policy + config.value_coefficient * value, figures | {"value_loss": value}

    return loss


def update(
    stepper: Stepper, minibatches: Sequence[Minibatch], config: PPOConfig, learning_rate_at: Callable[[int], float]
) -> dict[str, float]:
    """One step a minibatch, optimizer.epochs times over; the figures are means over the steps.

    Args:
        minibatches: with their experience, as many on every process.
        learning_rate_at: of the stepper's n-th step.

    Returns:
        loss, policy_loss, clip_fraction, grad_norm, and value_loss where there is one; `first_ratio`, the mean ratio of
        new to old probability in the first step (1 but for rounding); how many steps were `skipped`.
    """
    loss = ppo_loss(config)
    steps = []
    for _ in range(config.optimizer.epochs):
        for minibatch in minibatches:
            rate = learning_rate_at(stepper.steps)
            steps.append(stepper.step(minibatch.batches, loss, minibatch.tokens, rate))
    means = {name: fmean(s.means[name] for s in steps) for name in steps[0].means if name != "ratio"}
    return {
        **means,
        "grad_norm": fmean(s.grad_norm for s in steps),
        "first_ratio": steps[0].means["ratio"],
        "skipped": sum(not s.taken for s in steps),
    }
