"""Scores are not made twice: those of an attempt that broke off, and of earlier versions by the same reward models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.configuration import parse_config
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rejection.pool import read_completions, write_completions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import context_distillation
import rejection_sampling

Run = Callable[..., Path]
PROMPTS = 4


@pytest.fixture
def run(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Rejection sampling of one version, as its command line has it; returns its folder."""
    (tmp_path / "own_rewards.py").write_text(
        "import torch\n\ndef own(conversations):\n    return torch.zeros(len(conversations))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [
        {"id": f"p{i}", "domain": "safety", "messages": [{"role": "user", "content": f"{i} ?"}]} for i in range(PROMPTS)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(tiny_policy_path)
    for seed in (0, 1):
        RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=seed).save(tmp_path / f"r{seed}", tokenizer)

    def start(version: str, **options: Any) -> Path:
        given = {
            "output": tmp_path / version,
            "policy": tiny_policy_path,
            "fine_tune_from": tiny_policy_path,
            "prompts": tmp_path / "prompts.jsonl",
            "helpfulness": tmp_path / "r0",
            "version": version,
            "num_samples": 3,
            "sampling.max_new_tokens": 12,
            "selection.missing_end_penalty": 0.0,
            **options,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        rejection_sampling.main(parse_config(rejection_sampling.RejectionSamplingConfig, arguments))
        return tmp_path / version

    return start


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many conversations each call of a reward model scored."""
    from rlhf.rewards.scoring import RewardModelFunction

    found: list[int] = []
    call = RewardModelFunction.__call__

    def counted(self: RewardModelFunction, conversations: Any) -> torch.Tensor:
        found.append(len(conversations))
        return call(self, conversations)

    monkeypatch.setattr(RewardModelFunction, "__call__", counted)
    return found


def _break_off(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("the machine is gone")

    monkeypatch.setattr(module, "finetune_stage", fail)


def test_an_attempt_that_broke_off_while_fine_tuning_scored_for_the_next(
    run: Run, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        _break_off(broken, rejection_sampling)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run("v1")
    assert sum(scored) == 2 + 3 * PROMPTS, "two to see whether it works, and all answers"
    scored.clear()
    rows = read_completions(run("v1") / "completions.parquet")
    assert sum(scored) == 2 and len(rows) == 3 * PROMPTS and len({row.reward for row in rows}) > PROMPTS


def test_context_distillation_too(
    run: Run, scored: list[int], tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "categories.jsonl").write_text('{"name": "risk", "preprompt": "Take care.", "sources": ["x"]}\n')
    given = {
        "output": tmp_path / "distilled",
        "policy": tiny_policy_path,
        "prompts": tmp_path / "prompts.jsonl",
        "safety": tmp_path / "r0",
        "categories": tmp_path / "categories.jsonl",
        "preprompts": "generic",
        "gate": False,
        "num_samples": 8,
        "sampling.max_new_tokens": 150,
    }
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    config = parse_config(context_distillation.ContextDistillationConfig, arguments)
    with monkeypatch.context() as broken:
        _break_off(broken, context_distillation)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            context_distillation.main(config)
    assert sum(scored) > 8 * PROMPTS, "plain, and under a preprompt"
    scored.clear()
    context_distillation.main(config)
    assert scored == []


def test_a_function_of_ones_own_is_asked_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing records its code, which may have been mended since."""
    import own_rewards  # type: ignore[import-not-found]

    with monkeypatch.context() as broken:
        _break_off(broken, rejection_sampling)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run("v1", helpfulness="own_rewards:own")
    monkeypatch.setattr(own_rewards, "own", lambda conversations: torch.ones(len(conversations)))
    v1 = run("v1", helpfulness="own_rewards:own")
    assert {row.reward for row in read_completions(v1 / "completions.parquet")} == {1.0}


@pytest.mark.parametrize(("judge", "by_pool"), [("r0", True), ("r1", False)])
def test_earlier_answers_keep_the_scores_of_the_same_model(
    run: Run, scored: list[int], tmp_path: Path, judge: str, by_pool: bool
) -> None:
    """One of V1's answers is given a score that no model would: where it is chosen, that score counted."""
    v1 = run("v1")
    rows = read_completions(v1 / "completions.parquet")
    rows[0] = replace(rows[0], helpfulness=99.0)
    pool = tmp_path / "pool"
    write_completions(pool / "v1.parquet", rows)
    scored.clear()
    v2 = run("v2", pool=pool, helpfulness=tmp_path / judge, seed=1)
    figures = json.loads((v2 / "selection.json").read_text())
    assert sum(scored) == 2 + (1 if by_pool else 2) * 3 * PROMPTS
    chosen = [json.loads(line) for line in (v2 / "selected.jsonl").read_text().splitlines()]
    assert (max(row["reward"] for row in chosen) > 90) == by_pool
    assert figures["candidates_by_version"] == {"v1": 3 * PROMPTS, "v2": 3 * PROMPTS}
