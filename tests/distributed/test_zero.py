"""Two real processes under DeepSpeed ZeRO-2 and -3 on CPU compute what one process computes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ready_python import ReadyPython

pytestmark = [pytest.mark.doors, pytest.mark.xdist_group("ready")]

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
KINDS = {
    "one": None,
    "zero2": "accelerate_cpu_zero2.yaml",
    "zero3": "accelerate_cpu_zero3.yaml",
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(ready: ReadyPython, settings: str | None, policy: Path, reward: Path, output: Path) -> subprocess.Popen[str]:
    launcher = ready.python
    if settings is not None:
        launcher += ["-m", "accelerate.commands.launch", "--config_file", f"ds_configs/{settings}"]
        launcher += ["--main_process_port", str(_free_port()), *ready.script]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_XDIST"))},
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [*launcher, str(WORKER), str(policy), str(reward), str(output)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _adapter_reward(policy: Path, folder: Path) -> Path:
    """A reward model that is an adapter over the policy's weights."""
    from rlhf.models.config import AdapterConfig
    from rlhf.models.policy import load_tokenizer
    from rlhf.models.reward_model import RewardModel

    reward = RewardModel.from_policy(policy, safety_head=False, seed=0, adapter=AdapterConfig(r=4))
    reward.save(folder, load_tokenizer(policy), merge=False)
    return folder


def _reward_of_its_own_weights(policy: Path, folder: Path) -> None:
    from rlhf.models.policy import load_tokenizer
    from rlhf.models.reward_model import RewardModel

    RewardModel.from_policy(policy, safety_head=True, seed=3).save(folder, load_tokenizer(policy))


@pytest.fixture(scope="module")
def runs(
    tiny_policy_path: Path, ready_python: ReadyPython, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """All kinds side by side."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("distributed")
    reward = _adapter_reward(tiny_policy_path, folder / "reward")
    _reward_of_its_own_weights(tiny_policy_path, folder / "own_weights")
    started = {
        kind: _start(ready_python, settings, tiny_policy_path, reward, folder / kind)
        for kind, settings in KINDS.items()
    }
    try:
        for kind, process in started.items():
            text, _ = process.communicate(timeout=600)
            assert process.returncode == 0, f"{kind}:\n{text[-4000:]}"
    finally:
        for process in started.values():
            if process.poll() is None:
                process.kill()
    return {kind: folder / kind for kind in KINDS}


def _figures(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures


PARALLEL = [kind for kind, settings in KINDS.items() if settings]


@pytest.mark.parametrize("kind", PARALLEL)
def test_there_really_were_two_processes(runs: dict[str, Path], kind: str) -> None:
    figures = _figures(runs[kind])
    assert figures["processes"] == 2
    assert figures["kind"] == "DEEPSPEED"


@pytest.mark.parametrize("kind", PARALLEL)
def test_supervised_losses_equal_one_process(runs: dict[str, Path], kind: str) -> None:
    """Steps of 5, 5 and 4 rows in micro-batches of 2: two accumulated micro-batches a process, one of them empty."""
    one, other = _figures(runs["one"]), _figures(runs[kind])
    assert other["supervised"] == pytest.approx(one["supervised"], abs=1e-5)
    assert one["supervised"][-1] < one["supervised"][0] - 0.5


@pytest.mark.parametrize("kind", PARALLEL)
def test_bad_steps_are_skipped_everywhere(runs: dict[str, Path], kind: str) -> None:
    """An infinite loss with a finite gradient on one process only: nobody steps, and what follows is the same."""
    one, other = _figures(runs["one"]), _figures(runs[kind])
    assert one["skipped"] == other["skipped"] == 2
    assert [loss is None for loss in one["poisoned"]] == [loss is None for loss in other["poisoned"]]
    assert [x for x in other["poisoned"] if x] == pytest.approx([x for x in one["poisoned"] if x], abs=1e-5)


@pytest.mark.parametrize("kind", PARALLEL)
def test_a_lora_reward_model_learns_the_same(runs: dict[str, Path], kind: str) -> None:
    """Pairs of steps of 7 and 3, prompts shared in packed rows; saved merged, heads and all."""
    from safetensors.torch import load_file

    one, other = _figures(runs["one"])["reward"], _figures(runs[kind])["reward"]
    for expected, row in zip(one, other, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert one[-1]["safety_loss"] < one[0]["safety_loss"] - 0.3
    for file in ("model.safetensors", "safety_head.safetensors"):
        wanted, got = (load_file(runs[k] / "reward" / file) for k in ("one", kind))
        assert got.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PARALLEL)
def test_full_packed_fine_tuning_equals_one_process(runs: dict[str, Path], kind: str) -> None:
    one, other = _figures(runs["one"])["sft"], _figures(runs[kind])["sft"]
    assert sum("heldout_loss" in row for row in one) == 2 and len(one) == len(other) == 6
    for expected, row in zip(one, other, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", PARALLEL)
@pytest.mark.parametrize("roles", ["ppo", "shared"])
def test_ppo_figures_equal_one_process(runs: dict[str, Path], kind: str, roles: str) -> None:
    """15 answers in minibatches of 7, 7 and 1: samples, gate, whitening, losses and gradient norms."""
    one, other = _figures(runs["one"])[roles], _figures(runs[kind])[roles]
    assert [row.keys() for row in other] == [row.keys() for row in one]
    for expected, row in zip(one, other, strict=True):
        for name in (n for n in row if not n.startswith("seconds")):
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    assert other[0]["first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert other[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert abs(other[1]["kl"]) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_judges_beside_shared_roles_are_divided_under_zero_3(runs: dict[str, Path], kind: str) -> None:
    """A safety model and a referee with weights of their own; what they score is what one process scores (above)."""
    figures = _figures(runs[kind])
    assert figures["judges_divided"] == [kind == "zero3"] * 2
    evaluated = [row for row in figures["shared"] if "heldout_reward" in row]
    assert evaluated and all("heldout_referee" in row and "heldout_safety" in row for row in evaluated)


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_goes_on_from_a_state_bit_for_bit(runs: dict[str, Path], kind: str) -> None:
    """From the state after the first of two iterations: the same figures and weights; no line doubled or lost."""
    figures = _figures(runs[kind])
    whole, resumed = (
        [{k: v for k, v in row.items() if "seconds" not in k} for row in figures[name]] for name in ("ppo", "resumed")
    )
    assert [row["step"] for row in whole] == [0, 1, 2]
    assert resumed == whole
    weights = [(runs[kind] / name / "model.safetensors").read_bytes() for name in ("ppo", "resumed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("kind", PARALLEL)
def test_rejection_sampling_selects_what_one_process_selects(runs: dict[str, Path], kind: str) -> None:
    one, other = (runs[k] / "rejection_sampling" for k in ("one", kind))
    rows = [json.loads(line) for line in (one / "selected.jsonl").read_text().splitlines()]
    assert len(rows) > 3 and (other / "selected.jsonl").read_text() == (one / "selected.jsonl").read_text()
    figures = [json.loads((folder / "selection.json").read_text()) for folder in (one, other)]
    assert figures[0] == figures[1] and figures[0]["left_out"]["unfinished"] > 7


@pytest.mark.parametrize("kind", PARALLEL)
@pytest.mark.parametrize("stage", ["supervised", "poisoned", "sft", "ppo", "rejection_sampling/checkpoint"])
def test_saved_weights_are_whole_and_equal(
    runs: dict[str, Path], kind: str, stage: str, tiny_policy_path: Path
) -> None:
    from safetensors.torch import load_file

    one, other = (load_file(runs[k] / stage / "model.safetensors") for k in ("one", kind))
    start = load_file(tiny_policy_path / "model.safetensors")
    assert one.keys() == other.keys() == start.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5)
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 1e-3


@pytest.mark.parametrize("kind", PARALLEL)
def test_saved_adapters_are_whole_and_equal(runs: dict[str, Path], kind: str) -> None:
    """trl issue 4416: LoRA under ZeRO-3 saved empty adapters."""
    from safetensors.torch import load_file

    one, other = (load_file(runs[k] / "shared" / "adapter" / "adapter_model.safetensors") for k in ("one", kind))
    assert one.keys() == other.keys() and len(one) == 2 * 14
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5)
    assert all(tensor.abs().max() > 1e-4 for tensor in one.values())
