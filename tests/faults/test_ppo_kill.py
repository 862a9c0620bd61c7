"""Kill PPO at random moments: the same command goes on, and ends bit for bit where it would have ended.

Three moments; `RLHF_KILLS=20 python -m pytest tests/faults/test_ppo_kill.py` tries twenty.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlhf.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("RLHF_KILLS", "3"))
RUNS = """
import json, os, signal, sys, time
import ppo, rlhf.ppo.loop, rlhf.ppo.saving, rlhf.ppo.setup, rlhf.rewards.loading, torch.utils.tensorboard
from rlhf.configuration import run_recipe

for line in sys.stdin:  # all is imported: a start takes no time
    kill_after, sys.argv[1:] = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        run_recipe(ppo.main, ppo.PPORecipeConfig)
        os._exit(0)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if kill_after is not None and time.monotonic() - started > kill_after:
            os.kill(child, signal.SIGKILL)
            kill_after = None
        time.sleep(0.002)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - started]), flush=True)
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


def _options(policy: Path, output: str) -> list[str]:
    given = {
        "output": output,
        "policy": policy,
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
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def _outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for its clock and its name."""
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(folder / "metrics.jsonl")]
    files = ["samples.jsonl", "ppo.json", "checkpoint/model.safetensors"]
    found = sorted(path.name for path in folder.iterdir())
    return {"metrics": rows, "found": found} | {name: (folder / name).read_bytes() for name in files}


def test_kill_9_at_random_moments(tiny_policy_path: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards_of_this_test.py").write_text(REWARDS)
    texts = ("what is", "the river of velda", "hello", "how do I paint my own goat", "please answer in one word")
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with subprocess.Popen(
        [sys.executable, "-c", RUNS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}{os.pathsep}{ROOT / 'recipes'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
    ) as starter:
        assert starter.stdin is not None and starter.stdout is not None

        def run(output: str, kill_after: float | None = None) -> tuple[int, float]:
            starter.stdin.write(json.dumps([kill_after, _options(tiny_policy_path, output)]) + "\n")
            starter.stdin.flush()
            answer = starter.stdout.readline()
            assert answer, (tmp_path / "log").read_text()[-3000:]
            status, seconds = json.loads(answer)
            return status, seconds

        status, seconds = run("whole")
        assert status == 0, (tmp_path / "log").read_text()[-3000:]
        whole = _outcome(tmp_path / "whole")
        assert [row["step"] for row in whole["metrics"]] == list(range(8))
        assert len({row["beta"] for row in whole["metrics"][:7]}) > 1, "the controller has a state to lose"
        moments = random.Random(0)
        went_on = 0
        for number in range(KILLS):
            first, _ = run(f"killed{number}", moments.uniform(0.2, 1.0) * seconds)
            partial = tmp_path / f"killed{number}.partial"
            went_on += first != 0 and any(partial.glob("resume/step-*"))
            last = 0 if first == 0 else run(f"killed{number}")[0]
            assert last == 0, (tmp_path / "log").read_text()[-3000:]
            assert _outcome(tmp_path / f"killed{number}") == whole
            assert not partial.exists()
        assert went_on >= KILLS // 3, f"only {went_on} of {KILLS} kills left a state to go on from"
        print(f"{KILLS} kills, {went_on} of them after a state was written; all ended bit for bit the same")
