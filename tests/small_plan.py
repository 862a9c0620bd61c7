"""The demo's plan, everything in it as small as it gets: for tests of whole runs of the real stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def change(file: Path, **fields: object) -> None:
    """Set fields (`a__b` is a.b) of a YAML file."""
    content = yaml.safe_load(file.read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        inner = content
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    file.write_text(yaml.safe_dump(content))


def embedded_configs(folder: Path) -> Path:
    """A copy of the demo's YAML files below a folder."""
    return shutil.copytree(ROOT / "recipes" / "configs" / "embedded", folder / "configs")


def make_small(configs: Path) -> Path:
    """Change the demo's YAML files; the folder."""
    counts = {"web_documents": 400, "sft_rows": 100, "train_prompts": 60, "validation_prompts": 20, "test_prompts": 20}
    change(configs / "simulated_world.yaml", mixture=counts)
    size = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}
    change(configs / "pretrain.yaml", size={**size, "context": 256}, vocab_size=400)
    collect = {"pairs_per_prompt": 1, "safety_pairs_per_prompt": 2, "sampling__max_new_tokens": 16}
    change(configs / "collect_preferences.yaml", **collect)
    sweep = {"temperatures": [0.7, 1.6], "num_prompts": 12, "num_samples": 3, "best_of": 2, "groups": {}}
    change(configs / "temperature_sweep.yaml", **sweep, sampling__max_new_tokens=16)
    change(configs / "rejection_sampling.yaml", num_samples=4, sampling__max_new_tokens=16)
    change(configs / "evaluate.yaml", samples_per_prompt=1, sampling__max_new_tokens=16)
    ppo = {"iterations": 1, "batch_size": 8, "validation_size": 8}
    change(configs / "ppo.yaml", ppo={**ppo, "optimizer": {"batch_size": 8}}, sampling__max_new_tokens=16)
    return configs
