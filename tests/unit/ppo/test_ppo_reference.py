"""The whole of an update, from raw scores to losses, against one independent computation in numpy float64, to 1e-6.

The models are tables of made-up log-probabilities and values, so that nothing but the method's own arithmetic is
compared; `test_ppo_update.py` does the same with real models.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.objectives.reward import gate
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.experience import add_experience, make_minibatches
from rlhf.ppo.rollout import Rollout
from rlhf.ppo.update import ppo_loss
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Batch

ANSWERS, K = 24, 4
CONFIG = PPOConfig(
    batch_size=ANSWERS,
    samples_per_prompt=K,
    optimizer=OptimizerConfig(batch_size=7, micro_batch_size=2, schedule="constant", warmup_fraction=0.0),
    beta=0.3,
    gamma=0.97,
    lam=0.9,
    missing_end_penalty=0.7,
    value_clip_range=0.15,
    value_coefficient=0.4,
)


class Tables(nn.Module):
    """Log-probability and value of each rollout's tokens, looked up by `rows`."""

    def __init__(self, logprobs: list[np.ndarray], values: list[np.ndarray] | None) -> None:
        super().__init__()
        self.tables = (logprobs, values)

    def forward(self, batch: Batch, with_entropy: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
        logprobs, values = (None if t is None else _padded(t, batch) for t in self.tables)
        assert logprobs is not None
        return logprobs, values, torch.zeros_like(logprobs)


def _padded(table: list[np.ndarray], batch: Batch) -> Tensor:
    out = torch.zeros(batch["mask"].shape)
    for line, row in enumerate(batch["rows"].tolist()):
        out[line, : len(table[row])] = torch.tensor(table[row])
    return out


class World:
    """Raw scores, tags, ends and token tables of 6 prompts with 4 answers each."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        lengths = rng.integers(1, 9, ANSWERS)
        self.helpful, self.safe = rng.normal(-1, 2, ANSWERS), rng.normal(0, 2, ANSWERS)
        self.tagged = np.repeat(rng.random(ANSWERS // K) < 0.3, K)
        self.finished = rng.random(ANSWERS) < 0.8
        self.prompts = [tuple(rng.integers(3, 90, rng.integers(2, 7)).tolist()) for _ in range(ANSWERS // K)]
        self.answers = [tuple(rng.integers(3, 90, n).tolist()) for n in lengths]
        self.old = [-rng.exponential(1.5, n) for n in lengths]
        self.reference = [x + rng.normal(0, 0.4, len(x)) for x in self.old]
        self.new = [x + rng.normal(0, 0.2, len(x)) for x in self.old]
        self.old_values = [rng.normal(0, 0.5, n) for n in lengths]
        self.new_values = [x + rng.normal(0, 0.2, len(x)) for x in self.old_values]

    def rollouts(self) -> list[Rollout]:
        scores = [torch.tensor(x, dtype=torch.float64) for x in (self.helpful, self.safe)]
        reward, used = gate(scores[0], scores[1], torch.tensor(self.tagged))
        columns = (self.finished.tolist(), self.helpful.tolist(), self.safe.tolist(), reward.tolist(), used.tolist())
        rows = zip(self.answers, *columns, strict=True)
        return [Rollout(self.prompts[i // K], *row) for i, row in enumerate(rows)]


def _expected(world: World, config: PPOConfig) -> dict[str, Any]:
    """Everything again: float64, answer by answer, from the formulas."""
    sigmoid = 1 / (1 + np.exp(-world.safe))
    chosen = np.where(world.tagged | (sigmoid < 0.15), sigmoid, 1 / (1 + np.exp(-world.helpful)))
    logit = np.log(chosen / (1 - chosen))
    score = (logit - logit.mean()) / math.sqrt(((logit - logit.mean()) ** 2).mean() + 1e-8)
    score = score - config.missing_end_penalty * ~world.finished
    k1 = [old - ref for old, ref in zip(world.old, world.reference, strict=True)]
    returns: list[np.ndarray] = []
    if config.estimator == "gae":
        raw = []
        for i in range(ANSWERS):
            n, values = len(k1[i]), [*world.old_values[i], 0.0]
            reward = [-config.beta * k1[i][t] + (score[i] if t == n - 1 else 0.0) for t in range(n)]
            delta = [reward[t] + config.gamma * values[t + 1] - values[t] for t in range(n)]
            factor = config.gamma * config.lam
            raw.append(np.array([sum(factor ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)]))
            returns.append(raw[-1] + world.old_values[i])
        every = np.concatenate(raw)
        advantages = [(a - every.mean()) / math.sqrt(every.var() + 1e-8) for a in raw]
    else:
        cost = np.array([config.beta * x.sum() for x in k1])
        advantages = []
        for i in range(ANSWERS):
            group = list(range(i - i % K, i - i % K + K))
            if config.estimator == "rloo":
                others = [j for j in group if j != i]
                one = (score[i] - cost[i]) - np.mean([score[j] - cost[j] for j in others])
            else:
                one = (score[i] - score[group].mean()) / math.sqrt(score[group].var() + 1e-8)
                one -= cost[i] - cost[group].mean()
            advantages.append(np.full(len(k1[i]), one))
    policy = value = clipped = tokens = 0.0
    for i, advantage in enumerate(advantages):
        for t, a in enumerate(advantage):
            ratio = math.exp(world.new[i][t] - world.old[i][t])
            policy -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
            clipped += (ratio > 1.2 and a > 0) or (ratio < 0.8 and a < 0)
            tokens += 1
            if returns:
                new, old, target = world.new_values[i][t], world.old_values[i][t], returns[i][t]
                held = old + min(max(new - old, -config.value_clip_range), config.value_clip_range)
                value += max((new - target) ** 2, (held - target) ** 2) / 2
    return {
        "advantages": advantages,
        "returns": returns,
        "kl": sum(x.sum() for x in k1) / ANSWERS,
        "kl_k2": sum((x**2 / 2).sum() for x in k1) / ANSWERS,
        "kl_k3": sum((np.exp(-x) - 1 + x).sum() for x in k1) / ANSWERS,
        "loss": (policy + config.value_coefficient * value) / tokens,
        "clip_fraction": clipped / tokens,
    }


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_the_whole_update_equals_the_float64_reference(estimator: Any) -> None:
    world, config, accelerator = World(), replace(CONFIG, estimator=estimator), make_accelerator()
    expected = _expected(world, config)
    old, new = (
        Tables(logprobs, values if config.learns_value else None)
        for logprobs, values in ((world.old, world.old_values), (world.new, world.new_values))
    )
    minibatches = make_minibatches(world.rollouts(), config, accelerator, pad_id=2, seed=5)
    figures = add_experience(minibatches, old, lambda batch: _padded(world.reference, batch), config, accelerator)
    for name in ("kl", "kl_k2", "kl_k3"):
        assert figures[name] == pytest.approx(expected[name], abs=1e-6)
    loss, sums = ppo_loss(config), {"loss": 0.0, "clip_fraction": 0.0}
    for minibatch in minibatches:
        for batch, share in minibatch.batches:
            value, parts = loss(new, batch)
            sums["loss"] += share * value.item()
            sums["clip_fraction"] += share * parts["clip_fraction"].item()
            for line, row in enumerate(batch["rows"].tolist()):
                for name in ("advantages", *(["returns"] if config.learns_value else [])):
                    ours = batch[name][line][batch["mask"][line]].numpy()
                    np.testing.assert_allclose(ours, expected[name][row], rtol=1e-6, atol=1e-6)
                    assert not batch[name][line][~batch["mask"][line]].any()
    tokens = sum(minibatch.tokens for minibatch in minibatches)
    assert sums["loss"] / tokens == pytest.approx(expected["loss"], abs=1e-6)
    assert sums["clip_fraction"] / tokens == pytest.approx(expected["clip_fraction"], abs=1e-6)
    assert expected["clip_fraction"] > 0.05, "the clip bites"
    assert ("explained_variance" in figures) == config.learns_value
