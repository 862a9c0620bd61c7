"""The recipe by the command line, on the shared tiny policy."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.configuration import parse_config
from rlhf.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def words_of(folder: Path, options: dict[str, Any]) -> list[str]:
    return ["--output", str(folder)] + [
        part for name, value in options.items() for part in (f"--{name.replace('__', '.')}", str(value))
    ]


def dpo(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/dpo.py", *words_of(folder, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"what is {i} ?", "chosen": "sure it is mora .", "rejected": "no"} for i in range(24)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_policy_comes_to_prefer_what_was_chosen(
    tiny_policy_path: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"optimizer__batch_size": 8, "optimizer__epochs": 4, "optimizer__learning_rate": 1e-3}
    finetuning = {f"finetuning__{name}": value for name, value in steps.items()}
    out = tmp_path / "out"
    options = {"policy": tiny_policy_path, "preferences": pairs, "test_preferences": pairs} | finetuning
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("dpo")
    recipe.main(parse_config(recipe.DPOConfig, words_of(out, options)))
    metrics = read_metrics(out / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and len(metrics) == 12
    figures = json.loads((out / "dpo.json").read_text())
    assert figures["test"]["test_accuracy"] == 1.0 and figures["test"]["test_loss"] < 0.6
    assert (out / "checkpoint" / "model.safetensors").is_file()


def test_the_reference_in_4_bit_is_the_policy_as_it_starts(
    tiny_policy_path: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    held = {"quantization": "nf4", "adapter__r": 2, "adapter__dropout": 0.0, "beta": 5}
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("dpo")
    out, options = tmp_path / "out", {"policy": tiny_policy_path, "preferences": pairs} | held
    recipe.main(parse_config(recipe.DPOConfig, words_of(out, options)))
    assert read_metrics(out / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0}, "beta: must be above 0, got 0"),
        ({"finetuning__train": "all"}, "finetuning.train: must be last"),
        ({"reference": "nowhere"}, "nowhere"),
        ({"preferences": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str, tiny_policy_path: Path, pairs: Path, tmp_path: Path) -> None:
    done = dpo(tmp_path / "out", **{"policy": tiny_policy_path, "preferences": pairs} | options)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
