"""Kill rejection sampling, or the server that it asks, in the middle: the same command goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    pass

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
import json, os, sys
sys.path[:0] = [{root!r}, {recipes!r}, {here!r}]
import rejection_sampling
from rlhf.configuration import run_recipe
from rlhf.sampling import multi_process
from rlhf.sampling.in_process import InProcessSampler

multi_process.BLOCK = 10  # two prompts
draw, calls = InProcessSampler.sample, 0

def sample(self, prompts, num_samples, params, keys):
    global calls
    drawn = draw(self, prompts, num_samples, params, keys)
    if calls == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), 9)
    calls += 1
    with open(os.environ["TRACE"], "a") as stream:
        stream.write(json.dumps(list(keys)) + "\\n")
    return drawn

InProcessSampler.sample = sample
run_recipe(rejection_sampling.main, rejection_sampling.RejectionSamplingConfig)
"""
REWARDS = """
import torch

def length(conversations):
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])
"""


@pytest.fixture
def recipe(tiny_policy_path: Path, tmp_path: Path):
    """Run the recipe on 12 prompts, 5 answers each; a keyword is an option, KILL_AT the call in which it is killed."""
    (tmp_path / "rewards_of_this_test.py").write_text(REWARDS)
    (tmp_path / "run.py").write_text(RECIPE.format(root=str(ROOT), recipes=str(ROOT / "recipes"), here=str(tmp_path)))
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}]} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(output: str, kill_at: int = -1, **options: Any) -> subprocess.CompletedProcess[str]:
        given = {
            "output": tmp_path / output,
            "policy": tiny_policy_path,
            "fine_tune_from": tiny_policy_path,
            "prompts": tmp_path / "prompts.jsonl",
            "helpfulness": "rewards_of_this_test:length",
            "safety": "rewards_of_this_test:length",
            "num_samples": 5,
            "sampling.max_new_tokens": 100,
            **options,
        }
        command = [sys.executable, str(tmp_path / "run.py")]
        command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
        environment = os.environ | {"KILL_AT": str(kill_at), "TRACE": str(tmp_path / f"{output}.trace")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)

    return run


def test_kill_9_in_the_middle_of_sampling(recipe, tmp_path: Path) -> None:
    def asked(name: str) -> list[list[int]]:
        return [json.loads(line) for line in (tmp_path / f"{name}.trace").read_text().splitlines()]

    whole = recipe("whole")
    assert whole.returncode == 0, whole.stderr
    killed = recipe("killed", kill_at=3)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists() and asked("killed") == asked("whole")[:3]
    again = recipe("killed")
    assert again.returncode == 0 and "goes on, 6 of 12 prompts are answered" in again.stderr
    assert asked("killed") == asked("whole"), "the killed call is repeated, and no other"
    for file in ("completions.parquet", "selected.jsonl", "selection.json", "checkpoint/model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file
    assert not (tmp_path / "killed" / "samples").exists()
