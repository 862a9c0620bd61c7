"""The loop's decisions, on scripted evaluations: which checkpoint is kept, and when it stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import PPOResult, train_ppo
from rlhf.ppo.rollout import Rollout
from rlhf.ppo.saving import Saving
from rlhf.ppo.watch import suspicious_run
from rlhf.training.accelerator import make_accelerator

PROMPTS = [Prompt(f"p{i}", [{"role": "user", "content": "hello"}]) for i in range(6)]


class ScriptedPPO(PPO):
    """Evaluations and KLs by script."""

    def __init__(self, config: PPOConfig, rewards: Sequence[float], kls: Sequence[float]) -> None:
        self.config, self.rewards, self.kls = config, list(rewards), list(kls)
        self.accelerator, self.seed, self.beta = make_accelerator(seed=0), 0, 0.0
        self.seen: list[int] = []

    def evaluate(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], list[Rollout]]:
        assert len(prompts) == min(self.config.validation_size, len(PROMPTS))
        return {"heldout_reward": self.rewards.pop(0), "heldout_kl": self.kls[len(self.seen)]}, []

    def iterate(self, prompts: Sequence[Prompt], iteration: int) -> dict[str, float]:
        self.seen.append(iteration)
        return {"reward": 0.0, "kl": self.kls[iteration]}


class ListedSaving(Saving):
    """Writes nothing; `kept` lists the updates made when a policy was the best."""

    def __init__(self, ppo: ScriptedPPO) -> None:
        self.ppo, self.kept = ppo, list[int]()

    def restore(self) -> None:
        return None

    def keep_best(self, iteration: int) -> None:
        self.kept.append(len(self.ppo.seen))

    def log_samples(self, *arguments: Any) -> None:
        pass


def _run(
    folder: Path, rewards: Sequence[float], kls: Sequence[float] = (0.0,) * 20, **settings: Any
) -> tuple[ScriptedPPO, PPOResult, list[int]]:
    ppo = ScriptedPPO(PPOConfig(**{"iterations": 8, "batch_size": 4, "evaluate_every": 2, **settings}), rewards, kls)
    saving = ListedSaving(ppo)
    return ppo, train_ppo(ppo, PROMPTS, PROMPTS, MetricsLog(folder, ppo.accelerator), saving), saving.kept


def test_the_best_evaluation_is_kept(tmp_path: Path) -> None:
    _, result, kept = _run(tmp_path, [0.1, 0.4, 0.3, 0.6, 0.5], validation_size=3)
    assert kept == [0, 2, 6]
    assert result == PPOResult(8, "iterations", best_iteration=6, best_reward=0.6, first_reward=0.1)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(9))
    assert [row["step"] for row in rows if "heldout_reward" in row] == [0, 2, 4, 6, 8]


def test_a_neutral_score_keeps_no_policy_for_what_is_said_of_answers_without_an_end(tmp_path: Path) -> None:
    """Where none of its held-out answers ends, that is all that its reward is made of."""
    shares = iter([0.0, 0.1, 0.0, 0.2, 0.0])

    class Cut(ScriptedPPO):
        def evaluate(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], list[Rollout]]:
            figures, answers = super().evaluate(prompts)
            return figures | {"heldout_finished_share": next(shares)}, answers

    config = PPOConfig(iterations=8, batch_size=4, evaluate_every=2, unfinished_score="neutral")
    ppo = Cut(config, [5.0, 0.1, 6.0, 0.2, 7.0], [0.0] * 20)
    saving = ListedSaving(ppo)
    result = train_ppo(ppo, PROMPTS, PROMPTS, MetricsLog(tmp_path, ppo.accelerator), saving)
    assert saving.kept == [0, 2, 6] and (result.best_iteration, result.best_reward) == (6, 0.2)


def test_of_policies_that_finish_nothing_none_is_better(tmp_path: Path) -> None:
    """Before, that one was kept of which the reward models liked the answers without an end most."""

    class Endless(ScriptedPPO):
        def evaluate(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], list[Rollout]]:
            figures, answers = super().evaluate(prompts)
            return figures | {"heldout_finished_share": 0.0}, answers

    config = PPOConfig(iterations=8, batch_size=4, evaluate_every=2, unfinished_score="neutral", patience=3)
    ppo = Endless(config, [5.0, 6.0, 7.0, 8.0, 9.0], [0.0] * 20)
    saving = ListedSaving(ppo)
    result = train_ppo(ppo, PROMPTS, PROMPTS, MetricsLog(tmp_path, ppo.accelerator), saving)
    assert saving.kept == [0] and result == PPOResult(
        6, "patience", best_iteration=0, best_reward=5.0, first_reward=5.0
    )
    line = suspicious_run(0, read_metrics(tmp_path / "metrics.jsonl"))[0]
    assert "no evaluation that counts" in line and "8.000" not in line and "validation prompts" not in line


def test_the_last_policy_is_evaluated_too(tmp_path: Path) -> None:
    _, result, kept = _run(tmp_path, [0.1, 0.2, 0.9], iterations=3)
    assert (kept, result.best_iteration, result.best_reward) == ([0, 2, 3], 3, 0.9)


def test_patience_counts_evaluations_since_the_best(tmp_path: Path) -> None:
    ppo, result, kept = _run(tmp_path, [0.1, 0.4, 0.3, 0.4], patience=2)
    assert (result.stopped, result.iterations, result.best_iteration) == ("patience", 6, 2)
    assert ppo.seen == [0, 1, 2, 3, 4, 5]
    assert kept == [0, 2]


def test_too_far_from_the_reference_ends_it(tmp_path: Path) -> None:
    """The rollouts of iteration 3 show a KL above the limit: that policy is neither trained on nor kept."""
    ppo, result, kept = _run(tmp_path, [0.1, 0.4], kls=[0.0, 1.0, 2.0, 5.5], max_kl=5.0)
    assert (result.stopped, result.iterations) == ("max_kl", 3)
    assert ppo.seen == [0, 1, 2, 3]
    assert kept == [0, 2]


def test_a_policy_beyond_the_limit_is_never_the_best(tmp_path: Path) -> None:
    _, result, kept = _run(tmp_path, [0.1, 0.9], kls=[0.0, 1.0, 9.0], max_kl=5.0)
    assert (kept, result.best_reward, result.stopped) == ([0], 0.1, "max_kl")
    assert not math.isnan(result.first_reward)


def test_a_start_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """No policy could be kept: `take_best` would look for one in vain."""

    class Repetitive(ScriptedPPO):
        def evaluate(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], list[Rollout]]:
            figures, answers = super().evaluate(prompts)
            return figures | {"heldout_repetition": 0.4}, answers

    ppo = Repetitive(PPOConfig(batch_size=4, max_repetition=0.3), [0.1] * 9, [0.0] * 200)
    with pytest.raises(InputError, match=r"max_repetition: the starting policy is at 0.4 .* beyond 0.3 already"):
        train_ppo(ppo, PROMPTS, PROMPTS, MetricsLog(tmp_path, ppo.accelerator), ListedSaving(ppo))
