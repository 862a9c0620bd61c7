"""Kill PPO, SFT or reward training: the same command goes on, and ends bit for bit where it would have ended.

PPO at three random moments; `RLHF_KILLS=20 python -m pytest -s tests/faults/test_training_kill.py` tries twenty.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("RLHF_KILLS", "3"))
STARTER = """
import importlib, json, os, signal, sys, time, typing
import peft, rlhf.finetuning.supervised, rlhf.ppo.loop, rlhf.ppo.saving, rlhf.ppo.setup, rlhf.rewards.training
import rlhf.rewards.stage, torch.utils.tensorboard
from rlhf.configuration import run_recipe

def wait_for(path, lines):
    while child_lives() and lines and not (os.path.exists(path) and open(path).read().count("\\n") >= lines):
        time.sleep(0.002)

def child_lives():
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

for line in sys.stdin:  # all is imported: a start takes no time
    name, kill, sys.argv[1:] = json.loads(line)
    recipe = importlib.import_module(name)
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        run_recipe(recipe.main, typing.get_type_hints(recipe.main)["config"])
        os._exit(0)
    if kill is not None:
        path, lines, delay = kill
        wait_for(path, lines)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
REWARDS = """
import random

import numpy as np
import torch

def vowels(conversations):
    noise = [torch.rand(()).item() + np.random.rand() + random.random() for _ in conversations]
    return torch.tensor([c[-1]["content"].count("a") + 0.1 * n for c, n in zip(conversations, noise)])

def safe(conversations):
    return torch.full((len(conversations),), 2.0)
"""


TEXTS = ("what is", "the river of velda", "hello", "how do I paint my own goat", "please answer in one word")
PPO_OPTIONS = {
    "helpfulness": "rewards_of_this_test:vowels",
    "safety": "rewards_of_this_test:safe",
    "referee": "rewards_of_this_test:safe",
    "prompts": "prompts.jsonl",
    "validation_prompts": "prompts.jsonl",
    "sampling.max_new_tokens": 6,
    "ppo.iterations": 7,
    "ppo.batch_size": 8,
    "ppo.target_kl": 0.5,
    "ppo.optimizer.batch_size": 4,
    "ppo.optimizer.learning_rate": 3e-3,
    "ppo.evaluate_every": 2,
    "ppo.checkpoint_every": 2,
}
SUPERVISED_OPTIONS = {
    "sft": {
        "data": "dialogues.jsonl",
        "heldout_share": 0.2,
        "adapter": '{"r": 4, "dropout": 0.3}',  # draws at each step
        "finetuning.checkpoint_every": 2,
        "finetuning.optimizer.batch_size": 4,
        "finetuning.optimizer.learning_rate": 1e-2,
    },
    "safety_reward": {
        "preferences": '["pairs.jsonl"]',
        "test_preferences": '["pairs.jsonl"]',
        "other_share": 0.0,
        "training.checkpoint_every": 2,
        "training.optimizer.batch_size": 4,
        "training.optimizer.learning_rate": 1e-2,
    },
}


class Starter:
    """Runs recipes in children of a process that has imported all, and kills them at given moments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        paths = (folder, ROOT, ROOT / "recipes")
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )

    def run(self, recipe: str, output: str, options: dict[str, Any], kill: tuple[int, float] | None = None) -> int:
        """Exit code; `kill`: so many seconds after so many lines of metrics, whatever the machine's load is."""
        arguments = [part for item in ({"output": output} | options).items() for part in (f"--{item[0]}", str(item[1]))]
        moment = None if kill is None else [f"{output}.partial/metrics.jsonl", *kill]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([recipe, moment, arguments]) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline() or "1")
        assert status in (0, -9), self.log.read_text()[-3000:]
        return status


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "rewards_of_this_test.py").write_text(REWARDS)
    users = [{"role": "user", "content": text} for text in TEXTS * 4]
    rows: dict[str, list[dict[str, Any]]] = {
        "prompts": [{"id": f"p{i}", "messages": [users[i]]} for i in range(5)],
        "dialogues": [
            {"messages": [user | {"content": f"{i} {user['content']}"}, {"role": "assistant", "content": f"sure {i}"}]}
            for i, user in enumerate(users)
        ],
        "pairs": [
            {"id": f"r{i}", "messages": [user], "chosen": f"sure {i}", "rejected": f"I cannot {i}", "domain": "safety"}
            for i, user in enumerate(users)
        ],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    found = Starter(folder)
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait()


def _outcome(folder: Path, *files: str) -> dict[str, Any]:
    """All that a run leaves, but for its clock and its name."""
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(folder / "metrics.jsonl")]
    found = sorted(path.name for path in folder.iterdir())
    return {"metrics": rows, "found": found} | {name: (folder / name).read_bytes() for name in files}


def test_kill_9_of_ppo_at_random_moments(tiny_policy_path: Path, starter: Starter) -> None:
    options = {"policy": tiny_policy_path} | PPO_OPTIONS
    files = ("samples.jsonl", "ppo.json", "checkpoint/model.safetensors")
    assert starter.run("ppo", "whole", options) == 0
    whole = _outcome(starter.folder / "whole", *files)
    assert [row["step"] for row in whole["metrics"]] == list(range(8))
    assert len({row["beta"] for row in whole["metrics"][:7]}) > 1, "the controller has a state to lose"
    moments = random.Random(0)
    went_on = 0
    for number in range(KILLS):
        moment = (moments.randrange(8), moments.uniform(0, 0.2)) if number else (5, 0.0)
        status = starter.run("ppo", f"killed{number}", options, kill=moment)
        partial = starter.folder / f"killed{number}.partial"
        went_on += status != 0 and any(partial.glob("resume/step-*"))
        if status != 0:
            assert starter.run("ppo", f"killed{number}", options) == 0
        assert _outcome(starter.folder / f"killed{number}", *files) == whole
        assert not partial.exists()
    assert went_on >= 1
    print(f"{KILLS} kills, {went_on} of them after a state was written; all ended bit for bit the same")


def test_kill_9_of_ppo_with_shared_roles_and_without_a_value(tiny_policy_path: Path, starter: Starter) -> None:
    """A state holds the adapter, and no copy of the base."""
    options = {"policy": tiny_policy_path, "roles": "shared"} | PPO_OPTIONS
    options |= {"ppo.estimator": "rloo", "ppo.samples_per_prompt": 2, "ppo.iterations": 4}
    _kill_once(starter, "ppo", options, "shared")


@pytest.mark.parametrize("recipe", SUPERVISED_OPTIONS)
def test_kill_9_of_supervised_training(tiny_policy_path: Path, starter: Starter, recipe: str) -> None:
    _kill_once(starter, recipe, {"policy": tiny_policy_path} | SUPERVISED_OPTIONS[recipe], recipe)


def _kill_once(starter: Starter, recipe: str, options: dict[str, Any], name: str) -> None:
    """After the state of step 2."""
    whole, killed = (starter.folder / f"{name}_{end}" for end in ("whole", "killed"))
    assert starter.run(recipe, whole.name, options) == 0
    assert starter.run(recipe, killed.name, options, kill=(3, 0.0)) == -9
    state = killed.with_name(f"{killed.name}.partial") / "resume/step-000002"
    assert state.is_dir()
    assert starter.run(recipe, killed.name, options) == 0
    weights = [str(path.relative_to(whole)) for path in whole.glob("checkpoint/**/*.safetensors")]
    assert weights and _outcome(killed, *weights) == _outcome(whole, *weights)
    assert len(read_metrics(whole / "metrics.jsonl")) > 4
