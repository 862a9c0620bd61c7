"""PPO finds the optimum of problems whose optimum is known."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Prompt
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import PPOResult, train_ppo
from rlhf.ppo.roles import SeparateRoles
from rlhf.ppo.saving import Saving
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(("what is", "the river", "hello"))
]


def _letter_a(conversations: Sequence[Conversation]) -> Tensor:
    """1 for an answer that begins with a, 0 for any other."""
    return torch.tensor([float(c[-1]["content"].startswith("a")) for c in conversations])


def _all_safe(conversations: Sequence[Conversation]) -> Tensor:
    return torch.full((len(conversations),), 5.0)


def _train(
    policy_path: Path, folder: Path, tokens: int = 1, temperature: float = 1.0, **settings: object
) -> tuple[PPO, PPOResult]:
    accelerator = make_accelerator(seed=0)
    policy = load_policy(policy_path)
    learns_value = settings.get("estimator", "gae") == "gae"
    value = RewardModel.from_policy(policy_path, safety_head=False, seed=0) if learns_value else None
    optimizer = OptimizerConfig(
        learning_rate=1e-2,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.0,
        batch_size=32,
        micro_batch_size=32,
    )
    config = PPOConfig(
        **{
            "iterations": 30,
            "batch_size": 96,
            "optimizer": optimizer,
            "beta": 0.0,
            "missing_end_penalty": 0.0,
            "evaluate_every": 10,
            **settings,
        }
    )
    ppo = PPO(
        SeparateRoles(policy, copy.deepcopy(policy), value, _letter_a, _all_safe, accelerator),
        Renderer(load_tokenizer(policy_path)),
        config,
        SamplingParams(max_new_tokens=tokens, temperature=temperature),
        accelerator,
    )
    saving = Saving(folder, ppo.stepper, accelerator, save_policy=Path.mkdir)
    result = train_ppo(ppo, PROMPTS, PROMPTS * 16, MetricsLog(folder, accelerator), saving)
    return ppo, result


def test_bandit_reaches_the_known_optimum(tiny_policy_path: Path, tmp_path: Path) -> None:
    """One-token answers, those with "a" pay 1, no KL penalty: the best policy always says it."""
    _, result = _train(tiny_policy_path, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0]["reward"] < 0.2
    assert result.first_reward < 0.2
    assert result.best_reward == 1.0


@pytest.mark.parametrize(("estimator", "samples"), [("gae", 1), ("rloo", 4), ("grpo", 4)])
def test_credit_flows_from_the_last_step_to_the_first(
    tiny_policy_path: Path, tmp_path: Path, estimator: str, samples: int
) -> None:
    """Three tokens; the first decides, and what is paid for it stands on the last."""
    settings = {"estimator": estimator, "samples_per_prompt": samples, "iterations": 25, "evaluate_every": 25}
    _, result = _train(tiny_policy_path, tmp_path, tokens=3, **settings)
    assert result.first_reward < 0.2
    assert result.best_reward > 0.9


def _optimal_share(policy_path: Path, beta: float, temperature: float) -> float:
    """Share of "a" under the policy that is optimal with the KL penalty; all distributions at the temperature.

    The optimum of E[s] - beta KL is pi ~ reference x exp(s / beta), and the whitened score s of a paid answer is
    1 / sqrt(p (1 - p)) above that of an unpaid one: follow the fixed point up from the reference.
    """
    policy, renderer = load_policy(policy_path), Renderer(load_tokenizer(policy_path))
    pays = torch.tensor([renderer.answer_text([i]).startswith("a") for i in range(policy.config.vocab_size)])
    with torch.no_grad():
        logits = [policy(torch.tensor([renderer.prompt_ids(p.messages)])).logits[0, -1] for p in PROMPTS]
    start = torch.stack([(x.double() / temperature).softmax(-1)[pays].sum() for x in logits])
    share = start.mean()
    for _ in range(1000):
        target = torch.sigmoid(start.logit() + 1 / (beta * (share * (1 - share)).sqrt())).mean()
        share = share + 0.01 * (target - share)
    return float(share)


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.long), 0.5])
def test_bandit_with_a_kl_penalty_stops_at_the_known_optimum(
    tiny_policy_path: Path, tmp_path: Path, temperature: float
) -> None:
    """Neither the reference's share nor all: what reference x exp(score / beta) says."""
    optimum = _optimal_share(tiny_policy_path, 1.0, temperature)
    _train(tiny_policy_path, tmp_path, temperature=temperature, beta=1.0, iterations=40, evaluate_every=100)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    reached = sum(row["reward"] for row in rows[20:40]) / 20
    assert rows[0]["reward"] < optimum / 2
    assert reached == pytest.approx(optimum, abs=0.04)
