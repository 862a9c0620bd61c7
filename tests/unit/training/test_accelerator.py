"""The Accelerator: its precision, where nobody says and where somebody does, and how several processes wait."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from ready_python import ReadyPython

from rlhf.launch import PRECISION_UNSAID
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.loading import load_reward
from rlhf.rewards.scoring import RewardModelFunction
from rlhf.sampling.opening import load_weights
from rlhf.sampling.source import PolicySource
from rlhf.training.accelerator import frozen_dtype, make_accelerator, mixed_precision

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import torch.distributed as dist
from torch import nn
from rlhf.training.accelerator import make_accelerator

accelerator = make_accelerator()
group = dist.distributed_c10d._get_default_group()
patience = group._get_backend(accelerator.device).options._timeout.total_seconds()
found = accelerator.num_processes, patience, accelerator.prepare(nn.Linear(2, 2)).gradient_as_bucket_view
if accelerator.is_main_process:
    print(*found)
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("gpu", "bf16", "said", "left_open", "wanted"),
    [
        (True, True, None, False, "bf16"),
        (True, False, None, False, "no"),
        (True, True, "no", True, "bf16"),
        (True, True, "no", False, None),
        (True, True, "fp16", False, None),
        (False, False, None, False, None),
        (False, False, "no", True, None),
    ],
)
def test_bf16_on_a_gpu_unless_somebody_says_otherwise(
    gpu: bool, bf16: bool, said: str | None, left_open: bool, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    for name, value in (("ACCELERATE_MIXED_PRECISION", said), (PRECISION_UNSAID, "true" if left_open else None)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert mixed_precision() == wanted


@pytest.fixture
def other_state() -> Iterator[None]:
    """Accelerate knows nothing of the tests before, nor those after of this one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("asked", "wanted"), [("bf16", torch.bfloat16), (None, torch.float32)])
def test_what_is_only_run_is_held_in_the_mixed_precision_and_what_is_trained_in_float32(
    asked: str | None,
    wanted: torch.dtype,
    other_state: None,
    tiny_policy_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(
        tmp_path / "judge", load_tokenizer(tiny_policy_path)
    )
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if asked is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    accelerator = make_accelerator()
    judge = load_reward(tmp_path / "judge", device=accelerator.device)
    assert isinstance(judge, RewardModelFunction)
    backbone, head = judge.model.model.base_model, judge.model.model.score
    assert next(backbone.parameters()).dtype == wanted and head.weight.dtype == torch.float32
    source = PolicySource(checkpoint=tiny_policy_path)
    assert load_weights(source, accelerator.device).dtype == wanted
    exact = PolicySource(checkpoint=tiny_policy_path, dtype="float32")
    assert load_weights(exact, accelerator.device).dtype == torch.float32
    policy = load_policy(tiny_policy_path)
    assert policy.dtype == torch.float32
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "use_cache": False}
    with accelerator.autocast():
        assert policy.train()(**batch).logits.dtype == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert frozen_dtype("cpu") == "float32", "beside a GPU, what runs on the CPU"


@pytest.mark.doors
@pytest.mark.xdist_group("ready")
def test_processes_wait_long_enough_and_hold_their_gradients_once(tmp_path: Path, ready_python: ReadyPython) -> None:
    """NCCL's own patience is ten minutes: less than the main process tokenizes. DDP's buckets are a second copy of the
    gradients unless these are views of them."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*ready_python.python, "-m", "rlhf.launch", "--num_processes", "2", *ready_python.script]
    command.append(str(tmp_path / "script.py"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["2", "10800.0", "True"]
