"""PPO in two processes under ZeRO-3 with an engine that draws: no model lies whole anywhere but there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from ready_python import ReadyPython

from rlhf.metrics import read_metrics
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.models.reward_model import RewardModel

pytestmark = [pytest.mark.doors, pytest.mark.xdist_group("ready")]

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("engine_worker.py")
WORDS = {
    "prompts": "prompts.jsonl",
    "validation_prompts": "prompts.jsonl",
    "sampling.max_new_tokens": "6",
    "ppo.iterations": "2",
    "ppo.batch_size": "10",
    "ppo.optimizer.batch_size": "5",
    "ppo.optimizer.learning_rate": "1e-2",
    "ppo.evaluate_every": "1",
    "policy.engine": "vllm",
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    texts = ["what is", "the river of velda", "hello", "please answer in one word", "how do I paint my own goat"]
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": t}]} for i, t in enumerate(texts)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def ran(ready: ReadyPython, world: Path, engine: FakeEngine, **options: str) -> list[dict[str, Any]]:
    """What each process noted."""
    given = WORDS | {"output": "out", "policy.engine.environment": str(engine.folder)} | options
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_XDIST"))},
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(WORKER.parent)]),
    }
    settings = str(ROOT / "ds_configs" / "accelerate_cpu_zero3.yaml")
    launcher = [*ready.python, "-m", "rlhf.launch", "--config_file", settings, *ready.script, str(WORKER), "figures"]
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    done = subprocess.run([*launcher, *words], cwd=world, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = [json.loads((world / f"figures.{rank}").read_text()) for rank in range(2)]
    assert figures[0]["world"] == figures[1]["world"] == 2
    rows = read_metrics(world / "out" / "metrics.jsonl")
    assert [row["first_ratio"] for row in rows[:2]] == pytest.approx([1.0] * 2, abs=1e-6)
    assert not engine.running(within=20)
    return figures


def test_roles_on_one_base_and_one_engine_for_both_processes(
    world: Path, tiny_policy_path: Path, ready_python: ReadyPython
) -> None:
    """The judge is an adapter over the base; of the base no more than a matrix of an adapter is ever gathered."""
    reward = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0, adapter=AdapterConfig(r=4))
    reward.save(world / "reward", load_tokenizer(tiny_policy_path), merge=False)
    engine = FakeEngine(world / "environment")
    shape = {"roles": "shared", "adapter.r": "4", "policy.engine.options": '{"tensor_parallel_size": 2}'}
    found = ran(ready_python, world, engine, policy=str(tiny_policy_path), helpfulness="reward", **shape)
    assert engine.starts() == 1 and engine.option("tensor-parallel-size") == "2"
    assert len(engine.asked) == 2 * 10 + 3 * 5, "one engine draws all answers"
    assert [each["name"] for each in engine.given] == ["adapter", "adapter-000002", "adapter-000004"]
    config = load_policy(tiny_policy_path).config
    assert all(0 < one["gathered"] <= 4 * max(config.intermediate_size, config.hidden_size) for one in found)
    assert [one["loaded"] for one in found] == [1, 0], "the main process alone reads the base"
    assert [one["whole"] for one in found] == [[], []]


def test_separate_roles_and_an_engine_each(world: Path, tiny_policy_path: Path, ready_python: ReadyPython) -> None:
    """Policy, value, reference and judge are divided as they are loaded; for the engine one tensor after another."""
    RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0).save(
        world / "reward", load_tokenizer(tiny_policy_path)
    )
    engine = FakeEngine(world / "environment")
    found = ran(ready_python, world, engine, policy=str(tiny_policy_path), helpfulness="reward")
    assert engine.starts() == 2 * 3
    largest = max(p.numel() for p in load_policy(tiny_policy_path).parameters())
    assert [(one["gathered"], one["loaded"], one["whole"]) for one in found] == [(largest, 4, [])] * 2
