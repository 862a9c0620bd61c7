"""The example runs, every step of it, and is short."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "llama2_pipeline.py"


def test_the_pipeline_runs_and_says_what_it_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("llama2_pipeline", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    figures = example.main(tmp_path, scale=0.02)
    assert list(figures) == ["SFT", "best of 8", "PPO"]
    assert all(0 <= row["gold_safety"] <= 1 for row in figures.values())
    saved = {folder.name for folder in tmp_path.iterdir()}
    assert saved == {"sft", "helpfulness", "safety", "rejection_sampling", "ppo"}
    said = capsys.readouterr().out
    assert "best of 8: mean reward" in said and "ppo 0: reward" in said
    assert f"{figures['PPO']['reward']:.2f}" in said.splitlines()[-1]


def test_it_uses_no_recipe_and_can_be_read_in_one_go() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert "import recipes" not in text and "from recipes" not in text and "rlhf.stage" not in text
