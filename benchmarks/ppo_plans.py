"""What the PPO configurations of known models take, planned from the models' shapes: nothing is downloaded or loaded.

    OMP_NUM_THREADS=1 python benchmarks/ppo_plans.py

Prints the planner's report (`recipes/ppo.py --dry_run`) of each configuration on the hardware that it names, before its
reward models are trained. Three minutes. The last line is JSON: the largest share of a device's memory.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import yaml
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from rlhf.configuration import parse_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
import ppo

CONFIGS = Path(__file__).resolve().parents[1] / "recipes/configs"
LLAMA_70B = LlamaConfig(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
)
RUNS: dict[str, tuple[PretrainedConfig, str]] = {
    "llama2_7b_qlora/ppo.yaml": (LlamaConfig(), "--dry_run.memory_gib 24"),
    "llama2_13b/ppo.yaml": (
        LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
        "--dry_run.devices 16 --dry_run.zero_stage 3 --dry_run.memory_gib 80",
    ),
    "llama2_70b/ppo.yaml": (LLAMA_70B, "--dry_run.devices 32 --dry_run.memory_gib 80"),
    "llama2_70b/ppo_zero3.yaml": (LLAMA_70B, "--dry_run.devices 64 --dry_run.zero_stage 3 --dry_run.memory_gib 180"),
    "llama2_70b/ppo_engine.yaml": (LLAMA_70B, "--dry_run.devices 8 --dry_run.zero_stage 3 --dry_run.memory_gib 80"),
    "qwen3_0.6b/ppo.yaml": (
        Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            tie_word_embeddings=True,
        ),
        "--dry_run.memory_gib 40",
    ),
}


def plan(name: str, shape: PretrainedConfig, hardware: str) -> str:
    """The planner's report, from a policy folder with a config and no weights."""
    file = CONFIGS / name
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    named = settings["policy"]
    policy = Path(named if isinstance(named, str) else named["checkpoint"])
    policy.mkdir(parents=True)
    shape.save_pretrained(policy)
    sampling = yaml.safe_load(file.with_name("rejection_sampling.yaml").read_text(encoding="utf-8"))
    if settings.get("roles") == "shared":  # its policy is an adapter over the base
        trained = sampling["adapter"]
        adapter = {"r": trained["r"], "lora_alpha": trained["alpha"], "base_model_name_or_path": str(policy)}
        (policy / "adapter").mkdir()
        (policy / "adapter/adapter_config.json").write_text(json.dumps(adapter))
        (policy / "adapter/base.json").write_text(json.dumps({"quantization": settings.get("quantization")}))
    given = ["--config", str(file), *hardware.split()]
    config = parse_config(ppo.PPORecipeConfig, given)
    assert config.dry_run is not None
    return ppo.planned(config, config.dry_run)


def main() -> None:
    most = 0
    for name, (shape, hardware) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            text = plan(name, shape, hardware)
        print(f"{name} {hardware}\n{text}\n", flush=True)
        most = max([most, *map(int, re.findall(r"(\d+)% +[\d.]+$", text, re.MULTILINE))])
    print(json.dumps({"name": "ppo_plans", "ours": most, "unit": "% of a device's memory at most"}))


if __name__ == "__main__":
    main()
