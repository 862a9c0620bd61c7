from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from torch import nn

from rlhf.evaluation.benchmarks.leaderboard import TaskScore
from rlhf.sampling.source import PolicySource

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes/evaluation"))
import leaderboard


def test_a_name_with_a_slash_is_a_name(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "require_packages", lambda *_: None)
    monkeypatch.setattr(leaderboard, "load_as_saved", lambda source, device: (nn.Linear(1, 1), None))
    monkeypatch.setattr(leaderboard, "run_task", lambda *_, **__: TaskScore(0.5, 0.1, 10, {}))
    config = leaderboard.LeaderboardConfig(
        output=tmp_path / "out", models={"meta/llama": PolicySource(checkpoint=tiny_policy_path)}, tasks=("arc",)
    )
    leaderboard.main(config)
    assert json.loads((tmp_path / "out/leaderboard.json").read_text())["meta/llama"]["arc"]["score"] == 0.5
