"""Kill any training: the same command goes on, and ends bit for bit where it would have ended.

A recipe joins by itself: its config has checkpoint_every somewhere. What it needs to run in seconds stands in OPTIONS.

PPO at three random moments; `RLHF_KILLS=20 python -m pytest -s tests/faults/test_training_kill.py` tries twenty.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KILLED = dict.fromkeys(("sft", "helpfulness_reward", "rejection_sampling"), ())
"""One of each kind, with its marks; the others train through the same two stages (`make long`)."""
KILLS = int(os.environ.get("RLHF_KILLS", "3"))
STARTER = """
import gc, importlib, json, os, signal, sys, time, typing
import peft, rlhf.finetuning.supervised, rlhf.ppo.algorithm, rlhf.ppo.setup, rlhf.rewards.training.train
import rlhf.training.checkpoints, rlhf.rewards.training.stage, rlhf.finetuning.stage, rlhf.sampling.in_process
import torch.utils.tensorboard
from rlhf.configuration import run_recipe

def wait_for(path, lines):
    while child_lives() and lines and not (os.path.exists(path) and open(path).read().count("\\n") >= lines):
        time.sleep(0.002)

def child_lives():
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

gc.freeze()  # the end of a training looks through what is imported otherwise, and copies it
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

def length(conversations):
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])

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
STEPS = {"checkpoint_every": 2, "optimizer.batch_size": 4, "optimizer.learning_rate": 1e-2}
FINETUNING = {f"finetuning.{name}": value for name, value in STEPS.items()}
TRAINING = {f"training.{name}": value for name, value in STEPS.items()}
SAMPLING = {"sampling.max_new_tokens": 8, "policy.rows": 64}
MODEL = {"policy": "POLICY", "preferences": ["pairs.jsonl"], "learns": "safety"}
MODEL |= {"training": {"checkpoint_every": 2, "optimizer": {"batch_size": 4, "learning_rate": 1e-2}}}
OPTIONS: dict[str, dict[str, Any]] = {
    "sft": {
        "policy": "POLICY",
        "data": "dialogues.jsonl",
        "heldout_share": 0.2,
        "adapter": '{"r": 4, "dropout": 0.3}',  # draws at each step
        **FINETUNING,
    },
    "dpo": {
        "policy": "POLICY",
        "preferences": '["pairs.jsonl"]',
        "test_preferences": '["pairs.jsonl"]',
        "adapter": '{"r": 4, "dropout": 0.3}',
        **FINETUNING,
    },
    "safety_reward": {
        "policy": "POLICY",
        "preferences": '["pairs.jsonl"]',
        "test_preferences": '["pairs.jsonl"]',
        "other_share": 0.0,
        **TRAINING,
    },
    "rejection_sampling": {
        "policy": "POLICY",
        "fine_tune_from": "POLICY",
        "prompts": "dialogue_prompts.jsonl",
        "helpfulness": "rewards_of_this_test:length",
        "safety": "rewards_of_this_test:safe",
        "num_samples": 2,
        "sft_data": "dialogues.jsonl",
        **SAMPLING,
        "sampling.max_new_tokens": 150,
        **FINETUNING,
        "finetuning.optimizer.epochs": 5,
    },
    "ghost_attention": {
        "policy": "POLICY",
        "dialogues": "long_dialogues.jsonl",
        "instructions": "constraints.jsonl",
        "history": "given",
        "sft_data": "dialogues.jsonl",
        **SAMPLING,
        "sampling.max_new_tokens": 100,
        **FINETUNING,
        "finetuning.optimizer.epochs": 5,
    },
    "context_distillation": {
        "policy": "POLICY",
        "prompts": "safety_prompts.jsonl",
        "safety": "rewards_of_this_test:length",
        "categories": "categories.jsonl",
        "gate": "false",
        "sft_data": "dialogues.jsonl",
        **SAMPLING,
        "sampling.max_new_tokens": 150,
        **FINETUNING,
        "finetuning.optimizer.epochs": 5,
    },
    "pretrain": {"data": "dialogues.jsonl", "vocab_size": 300, "block_length": 32, "size.hidden_size": 16, **STEPS},
    "text_classifier": {"model": "POLICY", "data": '{"a": "pairs.jsonl", "b": "dialogue_prompts.jsonl"}', **STEPS},
    "reward_study": {
        "model": json.dumps(MODEL),
        "variants": '{"plain": {}}',
        "runs": '["."]',
        "seeds": "[1]",
        "test_preferences": '["pairs.jsonl"]',
    },
    "safety_study": {
        "policy": "POLICY",
        "helpfulness_data": '["dialogues.jsonl"]',
        "safety_data": '["dialogues.jsonl"]',
        "prompts": '{"unsafe": "prompts.jsonl"}',
        "kinds": '{"unsafe": "unsafe"}',
        "runs": '["."]',
        "seeds": "[1]",
        "fractions": "[1.0]",
        "sampling.max_new_tokens": 8,
        **FINETUNING,
    },
}
OPTIONS["helpfulness_reward"] = OPTIONS["safety_reward"] | {"preferences": '["helpful_pairs.jsonl"]'}
STAGE_OF = {"reward_study": "plain_1_seed1", "safety_study": "safety_100_seed1"}


def trainings() -> list[str]:
    """Every recipe whose config has checkpoint_every, however deep; PPO has tests of its own."""
    found = []
    for file in sorted((ROOT / "recipes").rglob("*.py"), key=lambda file: file.stem):
        sys.path.insert(0, str(file.parent))
        recipe = importlib.import_module(file.stem)
        if takes_checkpoints(typing.get_type_hints(recipe.main)["config"]):
            found.append(file.stem)
    return [name for name in found if name != "ppo"]


def takes_checkpoints(kind: type) -> bool:
    hints = typing.get_type_hints(kind)
    return "checkpoint_every" in hints or any(takes_checkpoints(h) for h in hints.values() if is_dataclass(h))


class Starter:
    """Runs recipes in children of a process that has imported all, and kills them at given moments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        paths = (folder, ROOT, *{file.parent for file in (ROOT / "recipes").rglob("*.py")})
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
        inside = f"{output}/{STAGE_OF[recipe]}" if recipe in STAGE_OF else output
        moment = None if kill is None else [f"{inside}.partial/metrics.jsonl", *kill]
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
    rows["helpful_pairs"] = [row | {"domain": "helpfulness"} for row in rows["pairs"]]
    rows["dialogue_prompts"] = [
        {"id": f"d{i}", "messages": row["messages"][:1]} for i, row in enumerate(rows["dialogues"][:12])
    ]
    rows["safety_prompts"] = [row | {"domain": "safety"} for row in rows["dialogue_prompts"]]
    rows["long_dialogues"] = [
        {"messages": one["messages"] + other["messages"]}
        for one, other in zip(rows["dialogues"][:12], rows["dialogues"][1:], strict=False)
    ]
    rows["constraints"] = [{"kind": "figure", "value": "a goat"}, {"kind": "language", "value": "velda"}]
    rows["categories"] = [{"name": "goats", "preprompt": "you are a guide", "sources": [], "words": ["goat"]}]
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


@pytest.mark.long
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


@pytest.mark.long
def test_kill_9_of_ppo_with_shared_roles_and_without_a_value(tiny_policy_path: Path, starter: Starter) -> None:
    """A state holds the adapter, and no copy of the base."""
    options = {"policy": tiny_policy_path, "roles": "shared"} | PPO_OPTIONS
    options |= {"ppo.estimator": "rloo", "ppo.samples_per_prompt": 2, "ppo.iterations": 4}
    _kill_once(starter, "ppo", options, "shared")


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=KILLED.get(name, (pytest.mark.long,))) for name in trainings()]
)
def test_kill_9_of_every_other_training(tiny_policy_path: Path, starter: Starter, recipe: str) -> None:
    assert recipe in OPTIONS, f"{recipe} takes checkpoint_every: give options with which it runs in seconds"
    options = {
        name: value.replace("POLICY", str(tiny_policy_path)) if isinstance(value, str) else value
        for name, value in OPTIONS[recipe].items()
    }
    _kill_once(starter, recipe, options, recipe)


def _kill_once(starter: Starter, recipe: str, options: dict[str, Any], name: str) -> None:
    """After the state of step 2."""
    inside = STAGE_OF.get(recipe, "")
    assert starter.run(recipe, f"{name}_whole", options) == 0
    assert starter.run(recipe, f"{name}_killed", options, kill=(3, 0.0)) == -9
    whole, killed = (starter.folder / f"{name}_{end}" / inside for end in ("whole", "killed"))
    state = killed.with_name(f"{killed.name}.partial") / "resume/step-000002"
    assert state.is_dir()
    assert starter.run(recipe, f"{name}_killed", options) == 0
    weights = [str(path.relative_to(whole)) for path in whole.glob("checkpoint/**/*.safetensors")]
    weights += [str(path.relative_to(whole)) for path in whole.glob("*.jsonl") if path.name != "metrics.jsonl"]
    weights += [name for name in ("safety_evaluation.json",) if (whole / name).exists()]
    assert weights and _outcome(killed, *weights) == _outcome(whole, *weights)
    assert len(read_metrics(whole / "metrics.jsonl")) > 4


@pytest.mark.long
def test_a_training_killed_on_one_process_goes_on_on_two(tiny_policy_path: Path, starter: Starter) -> None:
    """Plain data parallel: the same figures and weights up to rounding, and it is said."""
    options = {"policy": str(tiny_policy_path), "data": "dialogues.jsonl", **FINETUNING}
    assert starter.run("sft", "alone", options) == 0
    assert starter.run("sft", "joined", options, kill=(3, 0.0)) == -9
    joined = starter.folder / "joined"
    assert (joined.with_name("joined.partial") / "resume/step-000002").is_dir()
    arguments = [part for item in ({"output": "joined"} | options).items() for part in (f"--{item[0]}", str(item[1]))]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(ROOT / "ds_configs" / "accelerate_cpu_2.yaml"), "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, str(ROOT / "recipes" / "sft.py"), *arguments],
        cwd=starter.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sentence = "processes was 1, now 2: the result is the same up to rounding"
    assert "joined: goes on with the training states in" in done.stderr and sentence in done.stderr
    assert sentence in json.loads((joined / "stage.json").read_text())["went_on"][0]
    alone = starter.folder / "alone"
    one, two = (read_metrics(folder / "metrics.jsonl") for folder in (alone, joined))
    assert [row["step"] for row in one] == [row["step"] for row in two] and len(one) > 4
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    before, after = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (alone, joined))
    start = load_file(tiny_policy_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(before[name], start[name], atol=1e-3) for name in before), "it has learnt"
