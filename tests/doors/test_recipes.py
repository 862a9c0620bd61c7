"""Every training recipe from its shipped config, in an empty folder, and every file of ds_configs under one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from door import ROOT, Door

from rlhf.metrics import read_metrics

COMPARED = ("accelerate_cpu_2.yaml", "accelerate_cpu_zero2.yaml", "accelerate_cpu_zero3.yaml", "accelerate_zero1.yaml")
OTHERS = {
    "pretrain": "accelerate_cpu_zero3.yaml",
    "helpfulness_reward": "accelerate_cpu_zero3.yaml",
    "safety_reward": "accelerate_zero3_offload.yaml",
    "dpo": "accelerate_zero3.yaml",
    "rejection_sampling": "accelerate_cpu_zero3.yaml",
    "ghost_attention": "accelerate_cpu_zero3.yaml",
    "context_distillation": "accelerate_zero2.yaml",
    "text_classifier": "accelerate_cpu_zero3.yaml",
    "reward_study": "accelerate_cpu_2.yaml",
    "safety_study": "accelerate_cpu_zero2.yaml",
}
RARE = ("text_classifier", "reward_study", "safety_study")  # they train through the stages of the others
DOORS, LONG = pytest.mark.doors, pytest.mark.long
pytestmark = pytest.mark.xdist_group("ready")


@pytest.fixture(scope="session")
def one_process(door: Door) -> dict[str, Path]:
    """What plain Python makes of the same options."""
    return {"sft": run_sft(door, None), "ppo": run_ppo(door, None)}


def run_sft(door: Door, settings: str | None) -> Path:
    sizes = {"finetuning__optimizer__batch_size": 8, "finetuning__optimizer__micro_batch_size": 3}
    return door.launch(settings, "sft", "embedded/sft.yaml", policy=door.policy, data=door.rows("chats"), **sizes)


def run_ppo(door: Door, settings: str | None) -> Path:
    prompts = door.rows("prompts")
    return door.launch(
        settings,
        "ppo",
        "embedded/ppo.yaml",
        policy=door.policy,
        **{name: door.rewards / name for name in ("helpfulness", "safety")},
        prompts=prompts,
        validation_prompts=prompts,
        ppo__iterations=1,
        ppo__batch_size=8,
        ppo__optimizer__batch_size=4,
        ppo__optimizer__micro_batch_size=2,
        ppo__validation_size=4,
        sampling__max_new_tokens=8,
    )


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        pytest.param(recipe, settings, marks=LONG if (recipe, settings) == ("ppo", "accelerate_zero1.yaml") else DOORS)
        for settings in COMPARED
        for recipe in ("sft", "ppo")
    ],
)
def test_two_processes_make_what_one_makes(
    door: Door, one_process: dict[str, Path], recipe: str, settings: str
) -> None:
    """The same figures at every step, and weights that plain transformers loads, up to rounding."""
    made = {"sft": run_sft, "ppo": run_ppo}[recipe](door, settings)
    wanted, got = (read_metrics(folder / "metrics.jsonl") for folder in (one_process[recipe], made))
    assert [row.keys() for row in got] == [row.keys() for row in wanted]
    for expected, row in zip(wanted, got, strict=True):
        figures = {name: value for name, value in expected.items() if "seconds" not in name}
        assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-3, abs=1e-4)
    assert_close(made / "checkpoint", one_process[recipe] / "checkpoint")
    assert json.loads((made / "stage.json").read_text())["config"]["output"] == str(made)


def assert_close(folder: Path, expected: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    got, wanted = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (folder, expected))
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-3, atol=2e-3)


REWARD = {"training__optimizer__batch_size": 8, "training__optimizer__micro_batch_size": 2}
FINETUNING = {"finetuning__optimizer__batch_size": 8, "finetuning__optimizer__micro_batch_size": 3}


def others(door: Door) -> dict[str, tuple[str, dict[str, Any]]]:
    """Recipe -> (config, options)."""
    chats, prompts, preferences = (door.rows(name) for name in ("chats", "prompts", "preferences"))
    pairs = {"policy": door.policy, "preferences": [preferences], "other_preferences": [preferences]}
    judges = {name: door.rewards / name for name in ("helpfulness", "safety")}
    short, long = {"sampling__max_new_tokens": 8}, {"sampling__max_new_tokens": 60}  # a random model seldom ends
    size = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32}
    return {
        "pretrain": (
            "embedded/pretrain.yaml",
            {"data": door.rows("texts"), "vocab_size": 320, "block_length": 32}
            | {f"size__{name}": value for name, value in size.items()},
        ),
        "helpfulness_reward": (
            "embedded/helpfulness_reward.yaml",
            {**pairs, "test_preferences": [preferences], **REWARD},
        ),
        "safety_reward": (
            "embedded/safety_reward.yaml",
            {**pairs, "test_preferences": [preferences], **REWARD},
        ),
        "dpo": (
            "embedded/dpo.yaml",
            {"policy": door.policy, "preferences": [preferences], "test_preferences": [preferences], **FINETUNING},
        ),
        "rejection_sampling": (
            "embedded/rejection_sampling.yaml",
            {"policy": door.policy, "fine_tune_from": door.policy, "prompts": prompts, **judges, **long, **FINETUNING}
            | {"num_samples": 8},
        ),
        "ghost_attention": (
            "embedded/ghost_attention.yaml",
            {"policy": door.policy, "dialogues": door.rows("dialogues"), "sft_data": chats, **long, **FINETUNING}
            | {"checker": "null"},  # a random model obeys nobody
        ),
        "context_distillation": (
            "embedded/context_distillation.yaml",
            {"policy": door.policy, "prompts": prompts, "safety": judges["safety"], "sft_data": chats}
            | {"test_prompts": "null", "scorer": "null", "world": "null", **long, **FINETUNING},
        ),
        "text_classifier": (
            "benchmarks/text_classifier.yaml",
            {
                "model": door.policy,
                "data": {label: str(door.here / f"{label}.txt") for label in ("rough", "kind")},
                "optimizer__batch_size": 8,
                "optimizer__micro_batch_size": 4,
                "optimizer__epochs": 1,
            },
        ),
        "reward_study": (
            "embedded/margin_study.yaml",
            {
                "model__policy": door.policy,
                "model__preferences": [preferences],
                "test_preferences": [preferences],
                "runs": [str(door.here)],
                "seeds": [0],
                "fractions": [1.0],
            },
        ),
        "safety_study": (
            "embedded/safety_study.yaml",
            {
                "policy": door.policy,
                "helpfulness_data": [chats],
                "safety_data": [chats],
                "prompts": {"test": str(prompts)},
                **judges,
                "runs": [str(door.here)],
                "seeds": [0],
                "kinds": {"test": "unsafe"},
                "fractions": [0.5],
                "scorer": "null",
                "world": "null",
                **short,
            },
        ),
    }


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=LONG if name in RARE else DOORS) for name in OTHERS])
def test_every_other_training_recipe(door: Door, recipe: str) -> None:
    config, options = others(door)[recipe]
    made = door.launch(OTHERS[recipe], recipe, config, **options)
    assert (made / "stage.json").exists() or list(made.rglob("stage.json")), "the stage is finished"
    weights = [file for file in made.rglob("*.safetensors") if file.stat().st_size > 1000]
    assert weights or recipe == "safety_study", "whole weights are saved, no empty ones; that study keeps figures alone"


def test_every_file_of_ds_configs_is_tried() -> None:
    tried = {*OTHERS.values(), *COMPARED}
    assert tried == {file.name for file in (ROOT / "ds_configs").glob("*.yaml")}
