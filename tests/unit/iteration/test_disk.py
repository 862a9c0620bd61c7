"""The room that a plan needs on the disk: known before it starts, refused where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf.architecture import LlamaSize
from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.disk import checkpoint_bytes, disk_needed, in_words, require_room
from rlhf.iteration.plan import PlannedStage, make_plan

ROOT = Path(__file__).resolve().parents[3]
MB = 10**6


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A checkpoint of 5 MB from outside the run."""
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(5 * MB))
    return folder


def stage(name: str, recipe: str, folder: Path, yaml: str = "{}", **options: object) -> PlannedStage:
    (folder / f"{name}.yaml").write_text(yaml)
    overrides = {option: str(value) for option, value in options.items()}
    return PlannedStage(name, recipe, folder / f"{name}.yaml", overrides, (), folder / "run" / name)


def test_a_checkpoint_is_as_large_as_the_one_before(start: Path, tmp_path: Path) -> None:
    sft = stage("sft", "sft", tmp_path, policy=start)
    judge = stage("judge", "helpfulness_reward", tmp_path, policy=tmp_path / "run" / "sft" / "checkpoint")
    ppo = stage("ppo", "ppo", tmp_path, policy=tmp_path / "run" / "sft" / "checkpoint")
    figures = stage("figures", "evaluate", tmp_path, policy=start)
    stages = [sft, judge, ppo, figures]
    assert [checkpoint_bytes(one, stages) for one in stages] == [5 * MB, 5 * MB, 5 * MB, 0]
    assert disk_needed(stages, [one.name for one in stages]) == (3 + 3) * 5 * MB, (
        "three, and a state of three times one"
    )
    assert disk_needed(stages, ["figures"]) == disk_needed(stages, []) == 0
    (tmp_path / "run" / "ppo").mkdir(parents=True)
    (tmp_path / "run" / "ppo" / "old").write_bytes(bytes(2 * MB))
    assert disk_needed(stages, ["ppo"]) == (4 * 5 - 2) * MB, "its old folder goes"


@pytest.mark.parametrize(
    ("recipe", "yaml", "size"),
    [
        ("sft", "adapter: {r: 8}", 5 * MB),
        ("sft", "adapter: {r: 8, merge: false}", 0),
        ("sft", "{adapter: {r: 8}, quantization: nf4}", 0),
        ("helpfulness_reward", "training: {adapter: {merge: false}}", 0),
        ("ppo", "roles: shared", 0),
    ],
)
def test_an_adapter_alone_counts_nothing(start: Path, tmp_path: Path, recipe: str, yaml: str, size: int) -> None:
    one = stage("one", recipe, tmp_path, yaml, policy=start)
    assert checkpoint_bytes(one, [one]) == size


def test_a_model_from_scratch_is_counted_by_its_shape() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = LlamaSize(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )
    assert size.parameters(300) == sum(parameter.numel() for parameter in model.parameters())


def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's plan: pretraining, SFT, three times two reward models and rejection sampling, PPO."""

    class Usage(NamedTuple):
        total: int = 0
        used: int = 0
        free: int = 20 * MB

    demo = ROOT / "recipes" / "configs" / "embedded" / "iterative_rlhf.yaml"
    config = parse_config(IterativeConfig, ["--config", str(demo), "--run", str(tmp_path / "run")])
    stages = make_plan(config)
    names = [one.name for one in stages]
    one = checkpoint_bytes(next(s for s in stages if s.recipe == "pretrain"), stages)
    assert disk_needed(stages, names) == (12 + 3) * one
    assert require_room(stages, names, config.run).startswith(f"{in_words(15 * one)} at least to be written, ")
    usage: Any = lambda path: Usage()  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(InputError, match=r"run: no room for it in .*: [567]\d\.\d MB at least to be written, 20.0"):
        require_room(stages, names, config.run)
