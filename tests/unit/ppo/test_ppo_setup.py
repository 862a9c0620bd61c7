"""In which types separate roles are loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.setup import load_roles


@pytest.mark.parametrize(("zero_stage", "held"), [(0, torch.float32), (2, torch.bfloat16), (3, torch.bfloat16)])
def test_what_deepspeed_would_cast_is_loaded_so(
    zero_stage: int, held: torch.dtype, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five models wait in the CPU's memory, of every process, until they are divided. Under autocast the reference is
    what the policy is."""
    for module in ("rlhf.ppo.setup", "rlhf.training.accelerator"):
        monkeypatch.setattr(f"{module}.frozen_dtype", lambda device: "bfloat16")
    for place in ("rlhf.ppo.setup", "rlhf.rewards.scoring.RewardModelFunction"):
        monkeypatch.setattr(f"{place}.divide", lambda *_: None)
    accelerator: Any = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED if zero_stage else DistributedType.NO,
        mixed_precision="bf16",
        device=torch.device("cpu"),
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=zero_stage) if zero_stage else None),
    )
    folder = tmp_path / "reward"
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(folder, load_tokenizer(tiny_policy_path))
    roles: Any = load_roles(tiny_policy_path, folder, None, None, accelerator)
    assert roles._reference.dtype == held
    assert roles.helpfulness.model.model.dtype == torch.bfloat16
    assert {p.dtype for p in roles._trained.parameters()} == {torch.float32}
