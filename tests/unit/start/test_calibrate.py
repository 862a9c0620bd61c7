"""The calibration of a tiny model: what is kept, and when it is no longer of this run."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.iteration.config import IterativeConfig, VersionConfig
from rlhf.iteration.hours.counts import Rows
from rlhf.iteration.hours.speed import Line, Speed
from rlhf.iteration.plan import make_plan
from rlhf.stage import write_json
from rlhf.start import calibrate
from rlhf.start.times import estimates


@pytest.fixture
def config(tiny_policy_path: Path, tmp_path: Path) -> IterativeConfig:
    rows = [
        {"prompt": f"what is goat {i} ?", "chosen": "sure it is mora .", "rejected": "I cannot help"} for i in range(40)
    ]
    for name in ("pairs", "safety"):
        lines = [json.dumps({**row, "prompt": f"{name} {row['prompt']}"}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "rejection_sampling.yaml").write_text(
        "adapter: {r: 2, merge: false}\nsampling: {max_new_tokens: 8}\n"
    )
    (tmp_path / "config" / "prepare_data.yaml").write_text(
        "rounds: share\ntest_share: 0.2\nmax_preferences: 12\nsystem: be brief\n"
    )
    (tmp_path / "run").mkdir()
    inputs = {
        "policy": str(tiny_policy_path),
        "helpfulness_preferences": [str(tmp_path / "pairs.jsonl")],
        "safety_preferences": [str(tmp_path / "safety.jsonl")],
    }
    steps = ("helpfulness_reward", "safety_reward", "rejection_sampling")
    versions = (VersionConfig("v1", steps), VersionConfig("v2", ("rejection_sampling",)))
    return IterativeConfig(tmp_path / "run", tmp_path / "config", inputs, start=("data",), versions=versions)


def test_it_is_kept_for_this_model_this_machine_and_these_settings(
    config: IterativeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibrate.kept(config) is None
    monkeypatch.setattr(calibrate, "_run", in_this_process(monkeypatch, variables := []))
    found = calibrate.calibrated(config)
    assert found == calibrate.kept(config) is not None
    assert not any(variables), "the mixed precision is left to the machine"
    assert found["peak_memory_mb"] > 0 and 0.5 < found["characters_per_token"] < 10 and 0 < found["answer_share"] <= 1
    speed = Speed.of(found["speed"])
    lines = (speed.score, speed.train, speed.decode)
    assert speed.load > 0 and all(min(line.fixed, line.each) >= 0 and max(line.fixed, line.each) > 0 for line in lines)
    assert Line(**found["training_memory_mb"]).seconds(1, 1000) > 10, "MiB of a process that trains"
    (data,) = (stage for stage in make_plan(config) if stage.recipe == "prepare_data")
    assert found["data_seconds"] > 0 and estimates([data], {"data": None}, found) == {"data": found["data_seconds"]}
    rows = {name: Rows(**content) for name, content in found["rows"].items()}
    assert rows["preferences"].of_domain("safety") == 12, "as many as the run's data step makes"
    assert rows["preferences"].of_domain("helpfulness") == 12
    asked = len("pairs what is goat 10 ?") + len("be brief")
    assert rows["prompts"].characters == pytest.approx(asked, abs=2), "with the system message"
    assert 0 < rows["prompts"].number < 40, "a share of them each version"

    monkeypatch.setattr(calibrate, "_run", lambda *command: pytest.fail("it is measured again"))
    assert calibrate.calibrated(config) == found
    (config.configs / "rejection_sampling.yaml").write_text("adapter: {r: 4}\n")
    assert calibrate.kept(config) is None, "another adapter"
    (config.configs / "rejection_sampling.yaml").write_text("adapter: {r: 2}\nquantization: nf4\n")
    assert calibrate.kept(config) is None, "held in 4 bit"
    (config.configs / "rejection_sampling.yaml").write_text("adapter: {r: 2}\n")
    assert calibrate.kept(config) == found
    in_bf16 = replace(config, launch={"default": {"mixed_precision": "bf16"}})
    assert calibrate.kept(in_bf16) is None, "in another precision"
    monkeypatch.setattr(calibrate, "_run", in_this_process(monkeypatch, variables))
    found_in_bf16 = calibrate.calibrated(in_bf16)
    assert variables[-1] == {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert found_in_bf16 == calibrate.kept(in_bf16) is not None
    assert calibrate.kept(replace(in_bf16, launch={"rejection_sampling": {"mixed_precision": "bf16"}})) is not None
    write_json(config.run / calibrate.FILE, found)
    monkeypatch.setattr(calibrate, "_cpu", lambda: "another machine")
    assert calibrate.kept(config) is None
    assert calibrate.kept(replace(config, inputs={"policy": "nowhere"})) is None


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, asked: list[Mapping[str, str]]
) -> Callable[[Sequence[str], Mapping[str, str]], str]:
    """`calibrate._run` without a second import of torch; appends to `asked` the variables that it is given."""

    def run(command: Sequence[str], variables: Mapping[str, str] = {}) -> str:
        arguments = list(command[1:])
        asked.append(variables)
        if arguments[0] == "-m":
            calibrate.main(arguments[2:])
        else:
            monkeypatch.setattr("sys.argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
        return ""

    return run


def test_a_data_step_that_fails_is_said(config: IterativeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    (config.configs / "prepare_data.yaml").write_text("max_prompt_characters: 1\n")
    assert calibrate.calibrated(config) is None
    assert "calibration: left out, prompts: nothing is left for prompts_v1" in capsys.readouterr().err


def test_a_run_without_a_chat_model_has_none(config: IterativeConfig) -> None:
    assert calibrate.calibrated(replace(config, inputs={"hh": "folder"})) is None


def test_one_that_fails_is_said_and_left_out(
    config: IterativeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate.sys, "executable", "/bin/false")
    assert calibrate.calibrated(config) is None
    assert "calibration: left out" in capsys.readouterr().err


def test_another_kind_of_gpu_is_another_machine(tmp_path: Path) -> None:
    for place, name in (("0000:01:00.0", "NVIDIA H200"), ("0000:02:00.0", "NVIDIA H200")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 11\n")
    assert calibrate._kinds_of_gpu(tmp_path) == ["NVIDIA H200"]
    assert calibrate._kinds_of_gpu(tmp_path / "none") == []
