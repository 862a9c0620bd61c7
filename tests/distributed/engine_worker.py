"""Started by test_zero_engine.py: recipes/ppo.py, watched: what is gathered at once, and what is loaded beside what.

python tests/distributed/engine_worker.py FIGURES --output …
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from rlhf.configuration import parse_config
from rlhf.ppo import setup, shared

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import ppo

gathered: list[int] = []
"""Weights of each call that gathers some outside a forward pass."""
whole: list[str] = []
"""Models that lay whole in memory while another was loaded, or were given to DeepSpeed whole."""
loaded: list[nn.Module] = []


def note_whole(models: list[nn.Module], when: str) -> None:
    for model in models:
        if not all(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            whole.append(f"{type(model).__name__} {when}")


def watch(module: Any, name: str) -> None:
    plain: Callable[..., nn.Module] = getattr(module, name)

    def load(*args: Any, **options: Any) -> nn.Module:
        note_whole(loaded, f"beside {name}")
        found = plain(*args, **options)
        loaded.append(getattr(found, "model", found) if name == "load_reward" else found)
        return found

    setattr(module, name, load)


class Gathered(deepspeed.zero.GatheredParameters):  # type: ignore[misc]
    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        gathered.append(sum(parameter.ds_numel for parameter in params))
        super().__init__(params, *args, **options)


def main() -> None:
    deepspeed.zero.GatheredParameters = Gathered
    begin = deepspeed.initialize

    def initialize(*args: Any, **options: Any) -> Any:
        note_whole([options["model"]], "at initialize")
        return begin(*args, **options)

    deepspeed.initialize = initialize
    for name in ("load_policy", "load_value_model"):
        watch(setup, name)
    for module in (setup, shared):
        watch(module, "load_reward")
    watch(shared, "load_base")
    config = parse_config(ppo.PPORecipeConfig, sys.argv[2:])
    ppo.main(config)
    world = torch.distributed.get_world_size()
    figures = {"gathered": max(gathered), "whole": whole, "loaded": len(loaded), "world": world}
    Path(f"{sys.argv[1]}.{torch.distributed.get_rank()}").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
