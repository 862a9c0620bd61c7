"""PPO finds the optimum of problems whose optimum is known."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Prompt
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import PPO, PPOResult, train_ppo
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(("what is", "the river", "hello"))
]
LETTERS = {"a": 1.0, "e": 0.5}


def _letters(conversations: Sequence[Conversation]) -> Tensor:
    """1 for an answer that begins with a, 0.5 for e, 0 for any other."""
    return torch.tensor([LETTERS.get(c[-1]["content"][:1], 0.0) for c in conversations])


def _all_safe(conversations: Sequence[Conversation]) -> Tensor:
    return torch.full((len(conversations),), 5.0)


def _train(policy_path: Path, folder: Path, **settings: object) -> tuple[PPO, PPOResult]:
    accelerator = make_accelerator(seed=0)
    policy = load_policy(policy_path)
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
        policy,
        copy.deepcopy(policy),
        RewardModel.from_policy(policy_path, safety_head=False, seed=0),
        Renderer(load_tokenizer(policy_path)),
        _letters,
        _all_safe,
        config,
        SamplingParams(max_new_tokens=1),
        accelerator,
    )
    best: list[int] = []
    result = train_ppo(ppo, PROMPTS, PROMPTS * 16, MetricsLog(folder, accelerator), lambda: best.append(1))
    return ppo, result


def test_bandit_reaches_the_known_optimum(tiny_policy_path: Path, tmp_path: Path) -> None:
    """One-token answers; only those with "a" pay 1: the best policy says it always."""
    _, result = _train(tiny_policy_path, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    print([(r["step"], round(r.get("reward", -1), 3), round(r.get("entropy", -1), 2)) for r in rows])
    assert rows[0]["reward"] < 0.2
    assert result.best_reward > 0.9
