"""From rollouts to what the update needs: minibatches with old log-probabilities, advantages and returns.

The trainer recomputes the log-probabilities of the sampled tokens with the very batches that the update will use (the
sampler rounds otherwise), so that the ratio of the first minibatch is exactly 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.models.batching import pad_rows
from rlhf.objectives.policy import gae, kl_k1, kl_k3
from rlhf.objectives.reward import missing_end_penalty, moments, token_rewards, whiten
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rollout import Rollout
from rlhf.training.loop import micro_batches
from rlhf.training.step import Batch
from rlhf.training.whole import settle


@dataclass(frozen=True)
class Minibatch:
    """One step's rows: this process's (batch, share) pairs for `Stepper.step`, and the answer tokens of all."""

    batches: list[tuple[Batch, float]]
    tokens: int


def whitened_scores(rollouts: Sequence[Rollout], penalty: float) -> Tensor:
    """The score that stands on each answer's last token, (n,) float32: gated, whitened over all, less the penalty."""
    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float64)
    finished = torch.tensor([r.finished for r in rollouts])
    return missing_end_penalty(whiten(rewards), finished, penalty).float()


def collate(rollouts: Sequence[Rollout], scores: Sequence[float], pad_id: int) -> Batch:
    """Right-padded input_ids, attention_mask (n, T); start (n,) of the answer and its mask (n, A); scores (n,).

    groups (n,): rows with the same number answer the same prompt.
    """
    number_of: dict[tuple[int, ...], int] = {}
    ids, attention = pad_rows([[*r.prompt_ids, *r.answer_ids] for r in rollouts], pad_id)
    lengths = torch.tensor([len(r.answer_ids) for r in rollouts])
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "start": torch.tensor([len(r.prompt_ids) for r in rollouts]),
        "groups": torch.tensor([number_of.setdefault(r.prompt_ids, len(number_of)) for r in rollouts]),
        "mask": torch.arange(int(lengths.max())) < lengths[:, None],
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def make_minibatches(
    rollouts: Sequence[Rollout], config: PPOConfig, accelerator: Accelerator, pad_id: int, seed: int
) -> list[Minibatch]:
    """Shuffle all rollouts, cut them into minibatches, and those by length into this process's micro-batches."""
    scores = whitened_scores(rollouts, config.missing_end_penalty).tolist()
    order = torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(seed)).tolist()
    size, processes = config.optimizer.batch_size, accelerator.num_processes
    minibatches = []
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        count = math.ceil(len(rows) / (config.optimizer.micro_batch_size * processes))
        mine = micro_batches(rows, count, accelerator.process_index, processes, lambda i: rollouts[i].length)
        batches = []
        for micro in mine:
            chosen = micro or rows[:1]
            batch = collate([rollouts[i] for i in chosen], [scores[i] for i in chosen], pad_id)
            batches.append(({k: v.to(accelerator.device) for k, v in batch.items()}, float(bool(micro))))
        minibatches.append(Minibatch(batches, sum(len(rollouts[i].answer_ids) for i in rows)))
    return minibatches


@torch.no_grad()
def add_experience(
    minibatches: Sequence[Minibatch],
    model: nn.Module,
    reference_logprobs: Callable[[Batch], Tensor],
    config: PPOConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Add to each batch old_logprobs, old_values, returns and advantages (whitened over all processes), (n, A) each.

    Args:
        model: the stepper's.
        reference_logprobs: see `rlhf.ppo.roles.Roles`.

    Returns:
        Figures over all processes: kl, kl_k3 (nats an answer), entropy (nats a token), the value's explained_variance.
    """
    batches = [pair for minibatch in minibatches for pair in minibatch.batches]
    sums = torch.zeros(13, dtype=torch.float64, device=accelerator.device)
    for batch, share in batches:
        logprobs, values, entropy = model(batch, with_entropy=True)
        mask = batch["mask"]
        ref_logprobs = reference_logprobs(batch)
        rewards = token_rewards(logprobs, ref_logprobs, mask, batch["scores"], config.beta)
        advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
        batch.update(old_logprobs=logprobs, old_values=values, advantages=advantages, returns=returns)
        parts = (kl_k1(logprobs, ref_logprobs).sum(), kl_k3(logprobs, ref_logprobs).sum(), entropy.sum())
        plain = torch.stack([torch.tensor(float(len(mask)), device=mask.device), *parts]).double()
        moment = [moments(x, mask) for x in (advantages, returns, returns - values)]
        sums += share * torch.cat([plain, *moment])
    settle(model)
    sums = accelerator.reduce(sums, reduction="sum")
    for batch, _ in batches:
        batch["advantages"] = whiten(batch["advantages"], batch["mask"], sums=sums[4:7])
    rows, kl, k3, entropy_sum = sums[:4].tolist()
    spread = _variance(sums[7:10])
    return {
        "kl": kl / rows,
        "kl_k3": k3 / rows,
        "entropy": entropy_sum / float(sums[4]),
        "explained_variance": 1 - _variance(sums[10:13]) / spread if spread > 0 else math.nan,
    }


def _variance(sums: Tensor) -> float:
    """Biased variance from count, sum and sum of squares."""
    count, total, squares = sums.tolist()
    return max(0.0, squares / count - (total / count) ** 2)
