"""From rollouts to what the update needs: minibatches with old log-probabilities, advantages and returns.

The trainer recomputes the log-probabilities of the sampled tokens with the very batches that the update will use (the
sampler rounds otherwise), so that the ratio of the first minibatch is exactly 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.imports import own_code
from rlhf.models.batching import pad_rows
from rlhf.objectives.advantages import cross_moments, gae, rising_line
from rlhf.objectives.policy import kl_k1, kl_k2, kl_k3
from rlhf.objectives.reward import missing_end_penalty, moments, neutral_unfinished, token_rewards, whiten
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.estimators import ESTIMATORS, Answers, Estimator, Tokens, find_estimator
from rlhf.ppo.model import pack_batch
from rlhf.ppo.rollout import Rollout
from rlhf.training.feeding import on_device
from rlhf.training.loop import micro_batches
from rlhf.training.step import Batch
from rlhf.training.whole import settle


@dataclass(frozen=True)
class Minibatch:
    """One step's rows: this process's (batch, share) pairs for `Stepper.step`, and the answers and tokens of all."""

    batches: list[tuple[Batch, float]]
    answers: int
    tokens: int


def whitened_scores(rollouts: Sequence[Rollout], config: PPOConfig) -> Tensor:
    """The score that stands on each answer's last token, (n,) float32: gated, whitened over all, less the penalty."""
    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float64)
    finished = torch.tensor([r.finished for r in rollouts])
    if config.unfinished_score == "neutral":
        rewards = neutral_unfinished(rewards, finished, _prompt_numbers(rollouts))
    return missing_end_penalty(whiten(rewards), finished, config.missing_end_penalty).float()


def held_out_rewards(rollouts: Sequence[Rollout], config: PPOConfig) -> list[float]:
    """What each held-out answer counts where they choose a checkpoint: its gated reward.

    Where an unfinished answer's is neutral it counts as the finished ones do on average, less the penalty times their
    standard deviation (that of all, where one is finished): else a policy that learnt to come to an end would have
    gained nothing. Where none is finished, its own, by which no policy is chosen (`rlhf.ppo.loop`).
    """
    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float64)
    finished = torch.tensor([r.finished for r in rollouts])
    if config.unfinished_score == "neutral" and bool(finished.any()):
        spread = rewards[finished] if int(finished.sum()) > 1 else rewards
        penalty = config.missing_end_penalty * float(spread.std(unbiased=False))
        neutral = neutral_unfinished(rewards, finished, torch.zeros_like(finished, dtype=torch.int64))
        rewards = missing_end_penalty(neutral, finished, penalty)
    judged: list[float] = rewards.tolist()
    return judged


def _prompt_numbers(rollouts: Sequence[Rollout]) -> Tensor:
    """(n,) int64: rollouts with the same number answer the same prompt."""
    number_of: dict[tuple[int, ...], int] = {}
    return torch.tensor([number_of.setdefault(r.prompt_ids, len(number_of)) for r in rollouts])


def collate(rollouts: Sequence[Rollout], scores: Sequence[float], pad_id: int) -> Batch:
    """Right-padded input_ids, attention_mask (n, T); start (n,) of the answer and its mask (n, A); scores (n,).

    groups (n,): rows with the same number answer the same prompt. packed: the rows, by `rlhf.ppo.model.pack_batch`; and
    in_mask (M,), where each answer token stands in the flattened mask.
    """
    ids, attention = pad_rows([[*r.prompt_ids, *r.answer_ids] for r in rollouts], pad_id)
    lengths = torch.tensor([len(r.answer_ids) for r in rollouts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    batch = {
        "input_ids": ids,
        "attention_mask": attention,
        "start": torch.tensor([len(r.prompt_ids) for r in rollouts]),
        "groups": _prompt_numbers(rollouts),
        "mask": mask,
        "in_mask": mask.flatten().nonzero().squeeze(1),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }
    return {**batch, "packed": pack_batch(batch)}


def make_minibatches(
    rollouts: Sequence[Rollout], config: PPOConfig, accelerator: Accelerator, pad_id: int, seed: int
) -> list[Minibatch]:
    """Shuffle the prompts, cut their answers into minibatches, and those by length into this process's micro-batches.

    A prompt's answers stay together, so that packed rows compute it once. Each batch is that of `collate`, and rows
    (n,): which rollouts they are.
    """
    scores = whitened_scores(rollouts, config).tolist()
    asked = [list(rows) for _, rows in groupby(range(len(rollouts)), lambda i: rollouts[i].prompt_ids)]
    shuffled = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed)).tolist()
    order = [i for prompt in shuffled for i in asked[prompt]]
    size, processes = config.optimizer.batch_size, accelerator.num_processes
    minibatches = []
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        pieces, most = _pieces(rows, rollouts, config.optimizer.micro_batch_size)
        count = math.ceil(len(pieces) / (most * processes))
        mine = micro_batches(
            pieces, count, accelerator.process_index, processes, lambda piece: _tokens(piece, rollouts)
        )
        batches = []
        for micro in mine:
            chosen = [i for piece in micro for i in piece] or rows[:1]
            batch = collate([rollouts[i] for i in chosen], [scores[i] for i in chosen], pad_id)
            batch["rows"] = torch.tensor(chosen)
            batches.append((on_device(batch, accelerator.device), float(bool(micro))))
        minibatches.append(Minibatch(batches, len(rows), sum(len(rollouts[i].answer_ids) for i in rows)))
    return minibatches


def _pieces(rows: Sequence[int], rollouts: Sequence[Rollout], micro_batch_size: int) -> tuple[list[list[int]], int]:
    """Answers to one prompt in a row, in pieces of which micro-batches are made; and how many a micro-batch holds.

    A piece has at most as many rows as the largest divisor of the micro-batch size that one prompt's answers reach.
    """
    together = [list(same) for _, same in groupby(rows, lambda i: rollouts[i].prompt_ids)]
    longest = max(len(same) for same in together)
    size = max(d for d in range(1, micro_batch_size + 1) if micro_batch_size % d == 0 and d <= longest)
    pieces = [same[first : first + size] for same in together for first in range(0, len(same), size)]
    return pieces, micro_batch_size // size


def _tokens(rows: Sequence[int], rollouts: Sequence[Rollout]) -> int:
    """Of answers to one prompt and of it, once."""
    return len(rollouts[rows[0]].prompt_ids) + sum(len(rollouts[i].answer_ids) for i in rows)


def add_experience(
    minibatches: Sequence[Minibatch],
    model: nn.Module,
    reference_logprobs: Callable[[Batch], Tensor],
    config: PPOConfig,
    accelerator: Accelerator,
    beta: float | None = None,
) -> dict[str, float]:
    """`add_logprobs`, then `add_advantages`: all that the update needs. beta None: the config's."""
    figures = add_logprobs(minibatches, model, reference_logprobs, accelerator)
    return figures | add_advantages(minibatches, config, accelerator, config.beta if beta is None else beta)


@torch.no_grad()
def add_logprobs(
    minibatches: Sequence[Minibatch],
    model: nn.Module,
    reference_logprobs: Callable[[Batch], Tensor],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Add to each batch old_logprobs, ref_logprobs and, where there is a value model, old_values, (n, A) each.

    Args:
        model: the stepper's.
        reference_logprobs: see `rlhf.ppo.roles.Roles`.

    Returns:
        Figures over all processes: kl, kl_k2, kl_k3 (nats per answer), entropy (nats per token).
    """
    sums = torch.zeros(6, dtype=torch.float64, device=accelerator.device)
    for batch, share in _batches(minibatches):
        logprobs, values, entropy = model(batch=batch, with_entropy=True)
        reference = reference_logprobs(batch)
        batch.update(old_logprobs=logprobs, ref_logprobs=reference)
        if values is not None:
            batch["old_values"] = values
        mask = batch["mask"]
        parts = [mask.any(1), mask, entropy, *(k(logprobs, reference) for k in (kl_k1, kl_k2, kl_k3))]
        sums += share * torch.stack([part.double().sum() for part in parts])
    settle(model)
    answers, tokens, entropy_sum, *kls = accelerator.reduce(sums, reduction="sum").tolist()
    names = ("kl", "kl_k2", "kl_k3")
    return {name: kl / answers for name, kl in zip(names, kls, strict=True)} | {"entropy": entropy_sum / tokens}


@torch.no_grad()
def add_baselines(
    minibatches: Sequence[Minibatch], config: PPOConfig, accelerator: Accelerator, beta: float
) -> tuple[float, float]:
    """Add to each batch baselines, (n, A): its old_values, put on the line to the returns that followed.

    A value model starts as a reward model (decision 35), whose scores are not in the units of the whitened reward, and
    of an answer that is half written are guesses: advantages would be mostly the value's own noise, until that has been
    learnt away. On the line, what the values say of the returns stays, in their units; where they say nothing it is
    flat. It is drawn anew in each iteration, over all processes, and the value itself trains as it is.

    Returns:
        Slope and intercept, see `rlhf.objectives.advantages.rising_line`.
    """
    sums = torch.zeros(5, dtype=torch.float64, device=accelerator.device)
    for batch, share in _batches(minibatches):
        mask = batch["mask"]
        rewards = token_rewards(batch["old_logprobs"], batch["ref_logprobs"], mask, batch["scores"], beta)
        returns = gae(rewards, torch.zeros_like(rewards), mask, config.gamma, 1.0)[1]
        sums += share * cross_moments(batch["old_values"], returns, mask)
    slope, intercept = rising_line(accelerator.reduce(sums, reduction="sum"))
    for batch, _ in _batches(minibatches):
        batch["baselines"] = (slope * batch["old_values"] + intercept).masked_fill(~batch["mask"], 0.0)
    return slope, intercept


@torch.no_grad()
def add_advantages(
    minibatches: Sequence[Minibatch], config: PPOConfig, accelerator: Accelerator, beta: float
) -> dict[str, float]:
    """Add to each batch advantages, and with a value model returns, (n, A) each, as config.estimator has them.

    Of an estimator with a value model they are whitened over all processes' tokens. Those of RLOO and GRPO have mean 0
    by themselves and are left as they are (decision 37). What was to be expected are the batches' baselines, where
    `add_baselines` has put some, else their old_values.

    Returns:
        With a value model its explained_variance, over all processes.
    """
    estimator = find_estimator(config.estimator)
    answers = _all_answers(minibatches, config, accelerator, beta)
    sums = torch.zeros(9, dtype=torch.float64, device=accelerator.device)
    batches = _batches(minibatches)
    for batch, share in batches:
        mask, values = batch["mask"], batch.get("baselines", batch.get("old_values"))
        rewards = token_rewards(batch["old_logprobs"], batch["ref_logprobs"], mask, batch["scores"], beta)
        advantages, returns = checked_estimates(
            estimator, Tokens(rewards, mask, batch["rows"], values), answers, config
        )
        batch["advantages"] = advantages
        if returns is not None and values is not None:
            batch["returns"] = returns
            sums += share * torch.cat([moments(x, mask) for x in (advantages, returns, returns - values)])
    if not estimator.needs_value:
        return {}
    sums = accelerator.reduce(sums, reduction="sum")
    for batch, _ in batches:
        batch["advantages"] = whiten(batch["advantages"], batch["mask"], sums=sums[:3])
    variance = _variance(sums[3:6])
    return {"explained_variance": 1 - _variance(sums[6:9]) / variance if variance > 0 else math.nan}


def checked_estimates(
    estimator: Estimator, tokens: Tokens, answers: Answers, config: PPOConfig
) -> tuple[Tensor, Tensor | None]:
    """What the estimator gives, checked: it may be the user's own."""
    with own_code("estimator", config.estimator):
        found = estimator.advantages(tokens, answers, config)
    if not isinstance(found, tuple) or len(found) != 2:
        raise InputError(
            f"estimator: {config.estimator} must give two things, advantages and returns (None without a value model), "
            f"got a {type(found).__name__}"
        )
    shape = tuple(tokens.mask.shape)
    for estimate in found if estimator.needs_value else found[:1]:
        if not isinstance(estimate, Tensor) or tuple(estimate.shape) != shape or not estimate.is_floating_point():
            got = type(estimate).__name__
            if isinstance(estimate, Tensor):
                got = f"{tuple(estimate.shape)} of {estimate.dtype}"
            raise InputError(
                f"estimator: {config.estimator} must give advantages (and, as it needs_value, returns) of its tokens' "
                f"shape, {shape}, and of floats, got {got}"
            )
        known = config.estimator in ESTIMATORS  # finite of finite scores; to look would have the host wait for a GPU
        if not known and (bad := int((~estimate[tokens.mask].isfinite()).sum())):
            raise InputError(
                f"estimator: {config.estimator} must give finite numbers, and {bad} of "
                f"{int(tokens.mask.sum())} tokens' are NaN or infinite"
            )
    return found


def _all_answers(minibatches: Sequence[Minibatch], config: PPOConfig, accelerator: Accelerator, beta: float) -> Answers:
    """A prompt's answers lie in several batches and processes: each process gets the score and cost of all."""
    table = torch.zeros(2, sum(minibatch.answers for minibatch in minibatches), device=accelerator.device)
    for batch, share in _batches(minibatches):
        kl = kl_k1(batch["old_logprobs"], batch["ref_logprobs"]).sum(1)
        table.index_add_(1, batch["rows"], share * torch.stack([batch["scores"], kl]))
    scores, kls = accelerator.reduce(table, reduction="sum").view(2, -1, config.samples_per_prompt)
    return Answers(scores, beta * kls)


def _batches(minibatches: Sequence[Minibatch]) -> list[tuple[Batch, float]]:
    return [pair for minibatch in minibatches for pair in minibatch.batches]


def _variance(sums: Tensor) -> float:
    """Biased variance from count, sum and sum of squares."""
    count, total, squares = (float(figure) for figure in sums.tolist())
    return max(0.0, squares / count - (total / count) ** 2)
