"""What certainly does not fit is refused before its weights are loaded, in one sentence with the ways out."""

from __future__ import annotations

import importlib
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.models.checkpoint.memory import GIB, TRAINED, parameters_of, require_memory, trained_bytes
from rlhf.ppo.setup import role_bytes
from rlhf.sampling.source import EngineConfig, PolicyCheck, PolicySource

ROOT = Path(__file__).resolve().parents[4]


def accelerator(**plugin: Any) -> Any:
    return SimpleNamespace(device=torch.device("cpu"), state=SimpleNamespace(**plugin))


def test_weights_are_counted_from_the_files_headers(tiny_policy_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    count = sum(parameter.numel() for parameter in model.parameters())  # tied weights once
    assert parameters_of(tiny_policy_path) == count
    assert trained_bytes(tiny_policy_path, adapter=False, quantization=None) == TRAINED * count
    assert trained_bytes(tiny_policy_path, adapter=True, quantization="nf4") < count
    roles = role_bytes(tiny_policy_path, [str(tiny_policy_path), "a:b"], False, True, None)
    assert roles == {"policy": 16 * count, "reference": 4 * count, "value": 16 * count, "reward models": 4.0 * count}
    half = role_bytes(tiny_policy_path, [tiny_policy_path], False, True, None, "bfloat16")
    assert half == roles | {"reward models": 2.0 * count}
    assert role_bytes(tiny_policy_path, ["a:b", None], True, True, None) == {"base": 2 * count}


def test_only_what_cannot_fit_is_refused() -> None:
    import psutil

    total = psutil.virtual_memory().total
    require_memory({"policy": 0.9 * total}, accelerator())
    with pytest.raises(
        InputError, match=r"memory: at least .* GiB are needed \(policy .*--roles shared.*zero3"
    ) as refused:
        require_memory({"policy": 0.9 * total, "value": 0.2 * total}, accelerator())
    assert f"{1.1 * total / GIB:.1f} GiB" in str(refused.value)
    require_memory({"policy": 9.0 * total}, accelerator(deepspeed_plugin=object()))


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, False),
        ({"tensor_parallel_size": 2}, False),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, True),
        ({"quantization": "fp8"}, True),
    ],
)
def test_an_engine_divides_the_weights_over_its_gpus(
    options: dict[str, Any], fits: bool, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 4 * parameters_of(tiny_policy_path) / 4
    monkeypatch.setattr("rlhf.models.checkpoint.memory.available_memory", lambda accelerator: one)
    source = PolicySource(checkpoint=tiny_policy_path, dtype="float32", engine=EngineConfig(options=options))
    with nullcontext() if fits else pytest.raises(InputError, match="memory: at least"):
        PolicyCheck().require_memory("policy", source, None, accelerator())


BREVITY = "rlhf.rewards.examples:Brevity"
RECIPES = {
    "sft": {"data": "chats.jsonl"},
    "helpfulness_reward": {"preferences": "pairs.jsonl"},
    "dpo": {"preferences": "pairs.jsonl"},
    "ppo": {"prompts": "prompts.jsonl", "validation_prompts": "prompts.jsonl", "sampling.max_new_tokens": "8"}
    | {"helpfulness": BREVITY},
    "rejection_sampling": {"prompts": "prompts.jsonl", "helpfulness": BREVITY},
    "ghost_attention": {"dialogues": "talks.jsonl"},
    "context_distillation": {"prompts": "prompts.jsonl", "safety": BREVITY}
    | {"categories": str(ROOT / "recipes/configs/embedded/risk_categories.jsonl")},
    "collect_preferences": {"prompts": "prompts.jsonl", "test_prompts": "prompts.jsonl", "annotator": "proxy"}
    | {"annotator_options": json.dumps({"reward": BREVITY})},
    "temperature_sweep": {"prompts": "prompts.jsonl", "helpfulness": BREVITY},
    "evaluate": {"prompts": "prompts.jsonl", "name": "p"},
}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_recipes_ask_before_anything_is_drawn_or_trained(
    recipe: str, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through each recipe's own main, on a machine of one kilobyte."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(next((ROOT / "recipes").rglob(f"{recipe}.py")).parent))
    monkeypatch.setattr("rlhf.models.checkpoint.memory.available_memory", lambda accelerator: 1024.0)
    prompts = '{"id": "1", "messages": [{"role": "user", "content": "what is mora ?"}], "domain": "safety"}\n'
    pair = '{"prompt": "what is mora ?", "chosen": "sure", "rejected": "no"}\n'
    chat = '{"prompt": "what is mora ?", "completion": "sure"}\n'
    for name, text in (("prompts", prompts), ("pairs", pair), ("chats", chat)):
        (tmp_path / f"{name}.jsonl").write_text(text * (1 if name == "prompts" else 8))
    talk = [{"role": role, "content": "sure"} for role in ("user", "assistant") * 2]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    options = {"output": "out", "policy": str(tiny_policy_path), **RECIPES[recipe]}
    options |= {"fine_tune_from": str(tiny_policy_path)} if recipe == "rejection_sampling" else {}
    module = importlib.import_module(recipe)
    kind = next(v for n, v in vars(module).items() if n.endswith("Config") and v.__module__ == recipe)
    config = parse_config(kind, [part for name, value in options.items() for part in (f"--{name}", value)])
    with pytest.raises(InputError, match=r"memory: at least 0\.0 GiB are needed"):
        module.main(config)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists(), "nothing was drawn"
