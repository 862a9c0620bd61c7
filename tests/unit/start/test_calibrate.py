"""The calibration of a tiny model: what is kept, and when it is no longer of this run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.iteration.config import IterativeConfig, VersionConfig
from rlhf.iteration.hours.counts import Rows
from rlhf.iteration.hours.speed import Speed
from rlhf.start import calibrate


@pytest.fixture
def config(tiny_policy_path: Path, tmp_path: Path) -> IterativeConfig:
    rows = [
        {"prompt": f"what is goat {i} ?", "chosen": "sure it is mora .", "rejected": "I cannot help"} for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "rejection_sampling.yaml").write_text("adapter: {r: 2, merge: false}\n")
    (tmp_path / "config" / "prepare_data.yaml").write_text("rounds: share\ntest_share: 0.2\n")
    (tmp_path / "run").mkdir()
    inputs = {"policy": str(tiny_policy_path), "helpfulness_preferences": [str(tmp_path / "pairs.jsonl")]}
    versions = (VersionConfig("v1"), VersionConfig("v2"))
    return IterativeConfig(tmp_path / "run", tmp_path / "config", inputs, versions=versions)


def test_it_is_kept_for_this_model_this_machine_and_these_settings(
    config: IterativeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibrate.kept(config) is None
    given = {"run": str(config.run), "configs": str(config.configs), "inputs": config.inputs, "versions": ["v1", "v2"]}
    calibrate.main([json.dumps(given)])
    found = calibrate.kept(config)
    assert found is not None and found["peak_memory_mb"] > 0 and 0.5 < found["characters_per_token"] < 10
    speed = Speed.of(found["speed"])
    lines = (speed.score, speed.train, speed.decode)
    assert speed.load > 0 and all(min(line.fixed, line.each) >= 0 and max(line.fixed, line.each) > 0 for line in lines)
    assert calibrate.calibrated(config) == found, "it is not measured again"
    (config.configs / "rejection_sampling.yaml").write_text("adapter: {r: 4}\n")
    assert calibrate.kept(config) is None, "another adapter"
    (config.configs / "rejection_sampling.yaml").write_text("adapter: {r: 2}\n")
    assert calibrate.kept(config) == found
    monkeypatch.setattr(calibrate, "_cpu", lambda: "another machine")
    assert calibrate.kept(config) is None
    assert calibrate.kept(replace(config, inputs={"policy": "nowhere"})) is None


def test_what_the_data_step_will_make_is_expected(config: IterativeConfig) -> None:
    found = calibrate.expected_rows(config)
    whole = len("what is goat 10 ?") + len("sure it is mora .") + len("I cannot help")
    assert found["preferences"] == Rows(pytest.approx(40 * 0.75), pytest.approx(whole, abs=1))
    assert found["test_preferences"].number == pytest.approx(8)
    assert found["prompts"].number == pytest.approx(40 * 0.75 / 2), "a share of them each version"
    assert found["test_prompts"].number == pytest.approx(8) and found["validation_prompts"].number == pytest.approx(2)


def test_a_run_without_a_chat_model_has_none(config: IterativeConfig) -> None:
    assert calibrate.calibrated(replace(config, inputs={"hh": "folder"})) is None


def test_one_that_fails_is_said_and_left_out(
    config: IterativeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate.sys, "executable", "/bin/false")
    assert calibrate.calibrated(config) is None
    assert "calibration: left out" in capsys.readouterr().err
