"""Recipes that score with reward models, in two processes under ZeRO-3: no process ever holds one whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ready_python import ReadyPython

from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel

pytestmark = [pytest.mark.doors, pytest.mark.xdist_group("ready")]

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("scoring_worker.py")
MODELS = {"evaluate_rewards": 3, "evaluate": 4, "rejection_sampling": 2, "helpfulness_reward": 1}
"""Recipe -> the reward models that it loads, an ensemble's each."""
ANSWERS = ("mora", "the river of velda is mora", "I do not know", "blue", "ask a doctor instead")


def write_world(folder: Path, policy: Path) -> None:
    """Five pairs, three prompts, a reward model with weights of its own, an adapter, and an ensemble of both."""
    pairs: list[dict[str, Any]] = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i % 3} ?"}], "chosen": chosen}
        | {"rejected": ANSWERS[i - 1], "strength": "better", "domain": "helpfulness"}
        | {"chosen_safe": True, "rejected_safe": i % 2 == 0}
        for i, chosen in enumerate(ANSWERS)
    ]
    prompts: list[dict[str, Any]] = [
        {"id": f"q{i}", "messages": [{"role": "user", "content": text}]}
        for i, text in enumerate(("what is", "the river of velda", "hello"))
    ]
    for name, rows in {"pairs": pairs, "prompts": prompts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(policy)
    RewardModel.from_policy(policy, safety_head=True, seed=3).save(folder / "own", tokenizer)
    small = RewardModel.from_policy(policy, safety_head=False, seed=4, adapter=AdapterConfig(r=4))
    small.save(folder / "adapter", tokenizer, merge=False)
    members = "[own, adapter, 'scoring_worker:shortness']"
    (folder / "both.yaml").write_text(f"{{members: {members}, uncertainty_weight: 0.5}}\n")


def start(ready: ReadyPython, kind: str, policy: Path, world: Path) -> subprocess.Popen[str]:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_XDIST"))},
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(WORKER.parent)]),
    }
    launcher = ready.python
    if kind == "zero3":
        settings = str(ROOT / "ds_configs" / "accelerate_cpu_zero3.yaml")
        launcher += ["-m", "rlhf.launch", "--config_file", settings, *ready.script]
    return subprocess.Popen(
        [*launcher, str(WORKER), str(policy), kind],
        cwd=world,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def world(tiny_policy_path: Path, ready_python: ReadyPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what one process and two have written."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero_scoring")
    write_world(folder, tiny_policy_path)
    started = {kind: start(ready_python, kind, tiny_policy_path, folder) for kind in ("one", "zero3")}
    try:
        for kind, process in started.items():
            text, _ = process.communicate(timeout=1200)
            assert process.returncode == 0, f"{kind}:\n{text[-6000:]}"
    finally:
        for process in started.values():
            if process.poll() is None:
                process.kill()
    return folder


def figures(world: Path, kind: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world / f"{kind}.{rank}.json").read_text())
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested figures by their path."""
    if not isinstance(value, (Mapping, list)):
        return {name: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {path: leaf for key, part in items for path, leaf in flat(part, f"{name}.{key}").items()}


def close(got: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    assert got.keys() == want.keys() and want
    for name, value in want.items():
        assert got[name] == (pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value), name


def test_processes_with_less_to_score_keep_step_and_a_failure_of_one_is_told_to_all(world: Path) -> None:
    one, *both = [figures(world, *which)["dealt"] for which in (("one",), ("zero3", 0), ("zero3", 1))]
    assert "the last message must be the assistant" in one["said"] and both[0]["said"] == both[1]["said"] == one["said"]
    for name in ("dealt", "one has none"):
        assert both[0][name] == pytest.approx(one[name], abs=1e-5) and len(set(one[name])) == 3
    assert both[1]["dealt"] == both[0]["dealt"] and both[1]["one has none"] == []


@pytest.mark.parametrize("recipe", ["dealt", *MODELS])
def test_no_process_holds_a_reward_model_whole_and_none_outlives_its_recipe(world: Path, recipe: str) -> None:
    one, *both = [figures(world, *which)["held"][recipe] for which in (("one",), ("zero3", 0), ("zero3", 1))]
    assert len(one) == len(both[0]) == len(both[1]) == MODELS.get(recipe, 1)
    assert all(model["within"] == model["after"] == model["whole"] for model in one)
    for models in both:
        assert [model["whole"] for model in models] == [model["whole"] for model in one]
        for model in models:
            assert 0 < model["within"] < model["whole"] and model["after"] == 0 and model["gone"]
    assert [model["passes"] for model in both[0]] == [model["passes"] for model in both[1]]
    assert all(model["passes"] > 0 for model in one)


@pytest.mark.parametrize(
    ("recipe", "file"),
    [
        ("evaluate_rewards", "reward_evaluation.json"),
        ("evaluate", "evaluation.json"),
        ("rejection_sampling", "selection.json"),
        ("helpfulness_reward", "accuracy.json"),
    ],
)
def test_figures_are_those_of_one_process(world: Path, recipe: str, file: str) -> None:
    one, other = (flat(json.loads((world / kind / recipe / file).read_text())) for kind in ("one", "zero3"))
    close(other, one)


def test_rejection_sampling_trains_on_the_same_answers(world: Path) -> None:
    files = [world / kind / "rejection_sampling" / "selected.jsonl" for kind in ("one", "zero3")]
    one, other = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    close(flat(other), flat(one))
    assert len(one) == 3
