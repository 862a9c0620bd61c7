"""Fifty kills -9 over five runs of a plan of the real stages: each ends in what the uninterrupted run ended in."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_plan import ROOT, change, embedded_configs, make_small

from rlhf.lifetime import marked_processes

pytestmark = pytest.mark.long
KILLS = 10
STEPS = ["preferences", "rewards", "rejection_sampling", "evaluate", "ppo", "evaluate"]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training keeps a state after a few steps, so that a kill finds some to go on from."""
    folder = make_small(embedded_configs(tmp_path_factory.mktemp("plan")))
    change(folder / "pretrain.yaml", checkpoint_every=20)
    for name in ("sft", "rejection_sampling"):
        change(folder / f"{name}.yaml", finetuning__checkpoint_every=2)
    for name in ("helpfulness_reward", "safety_reward"):
        change(folder / f"{name}.yaml", training__checkpoint_every=2)
    change(folder / "ppo.yaml", ppo__iterations=3, ppo__checkpoint_every=1)
    return folder


def start(configs: Path, run: Path) -> subprocess.Popen[bytes]:
    """The driver of the plan; what it says is added to a log beside the run."""
    command = [sys.executable, "recipes/iterative_rlhf.py", "--config", str(configs / "iterative_rlhf.yaml")]
    versions = json.dumps([{"name": "v1", "steps": STEPS}])
    launch = json.dumps({name: {"processes": 2} for name in ("sft", "rejection_sampling")})
    options = ["--configs", str(configs), "--run", str(run), "--versions", versions, "--launch", launch]
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*command, *options], cwd=ROOT, stdout=log, stderr=log)


def finished(run: Path) -> int:
    """How many stages the run's ledger says so of."""
    ledger = run / "ledger.jsonl"
    return ledger.read_bytes().count(b'"event": "finished"') if ledger.exists() else 0


def ended(run: Path) -> dict[str, Any]:
    """What a run ended in: its summary but for the seconds, and what its checkpoints hold."""
    summary = json.loads((run / "summary.json").read_text().replace(str(run), "<run>"))
    summary.pop("seconds")
    weights = sorted(run.rglob("*.safetensors"))
    held = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in weights}
    return {"summary": summary, "weights": held}


@pytest.fixture(scope="module")
def uninterrupted(configs: Path) -> tuple[dict[str, Any], float]:
    """What the run ended in that nobody disturbed, and its seconds."""
    run, began = configs.parent / "whole", time.monotonic()
    assert start(configs, run).wait() == 0, run.with_suffix(".log").read_text()[-3000:]
    return ended(run), time.monotonic() - began


@pytest.mark.parametrize("seed", range(5))
def test_ten_kills_change_nothing(configs: Path, uninterrupted: tuple[dict[str, Any], float], seed: int) -> None:
    expected, seconds = uninterrupted
    run, moments = configs.parent / f"killed{seed}", random.Random(seed)
    victims: list[str] = []
    while len(victims) < KILLS:
        driver, until = start(configs, run), time.monotonic() + moments.uniform(0, 2 * seconds / KILLS)
        before = finished(run)
        while driver.poll() is None and time.monotonic() < until and finished(run) == before:
            time.sleep(0.02)  # no longer than to the end of a stage, however fast the machine has become
        if driver.returncode is not None:
            assert driver.returncode == 0, run.with_suffix(".log").read_text()[-3000:]
            break
        children = [pid for pid in marked_processes(run) if pid != driver.pid]
        if children and moments.random() < 0.5:
            with contextlib.suppress(ProcessLookupError):
                os.kill(moments.choice(children), signal.SIGKILL)
                victims.append("child")
            with contextlib.suppress(subprocess.TimeoutExpired):  # of a stage, which ends the run, or of none
                driver.wait(moments.uniform(0, 2 * seconds / KILLS))
        if driver.poll() is None:
            driver.kill()
            driver.wait()
            victims.append("driver")
    print(f"seed {seed}: {len(victims)} kills ({victims.count('driver')} of the driver)", flush=True)
    status = start(configs, run).wait()
    assert status == 0, run.with_suffix(".log").read_text()[-3000:]
    assert len(victims) >= KILLS - 2, "two stages may end at once"
    assert not list(run.rglob("*.partial")) and not marked_processes(run)
    assert ended(run) == expected
