"""The folder that all recipes of a session read from."""

from __future__ import annotations

from pathlib import Path

import pytest
from door import Door, write_rows
from ready_python import ReadyPython


@pytest.fixture(scope="session")
def door(tiny_policy_path: Path, ready_python: ReadyPython, tmp_path_factory: pytest.TempPathFactory) -> Door:
    pytest.importorskip("deepspeed")
    from rlhf.models.policy import load_tokenizer
    from rlhf.models.reward_model import RewardModel

    here = tmp_path_factory.mktemp("doors")
    write_rows(here)
    for seed, name in enumerate(("helpfulness", "safety")):
        model = RewardModel.from_policy(tiny_policy_path, safety_head=name == "safety", seed=seed)
        model.save(here / name, load_tokenizer(tiny_policy_path))
    return Door(here, tiny_policy_path, here, ready_python)
