"""Demonstrations for safety fine-tuning, on a simulated world (Llama 2 paper, section 4.2.1).

Stands in for the paper's annotators, who wrote adversarial prompts and safe answers to them. No prompt of the world's
validation and test files is asked.

    python recipes/data/simulated_safety_data.py --config recipes/configs/embedded/simulated_safety_data.yaml
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rlhf.configuration import run_recipe
from rlhf.data.loading import load_prompts
from rlhf.errors import InputError
from rlhf.jsonl import Row
from rlhf.simulation.corpus import UNSAFE, held_out_keys
from rlhf.simulation.safety_texts import helpful_demonstrations, safe_demonstrations
from rlhf.simulation.world import World
from rlhf.stage import ExistingPath, StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class SimulatedSafetyDataConfig(StageConfig):
    """What to make.

    Args:
        data: folder of recipes/data/simulated_world.py.
        helpfulness_rows, safety_rows: how many.
    """

    data: Annotated[Path, ExistingPath("world.json", "validation_prompts.jsonl", "test_prompts.jsonl")]
    helpfulness_rows: int = 2000
    safety_rows: int = 600

    def __post_init__(self) -> None:
        for name in ("helpfulness_rows", "safety_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")


def main(config: SimulatedSafetyDataConfig) -> None:
    stage = open_stage(config, one_process=True)
    world = World.load(config.data)
    prompts = {name: load_prompts(config.data / f"{name}_prompts.jsonl") for name in ("validation", "test")}
    with stage.work():
        held_out = held_out_keys(prompts)
        helpful = list(helpful_demonstrations(world, config.helpfulness_rows, held_out))
        safe = list(safe_demonstrations(world, config.safety_rows, held_out))
        both = [*helpful, *safe]
        random.Random(world.config.seed).shuffle(both)
        sets: dict[str, Iterable[Row]] = {
            "helpfulness": ({"messages": messages} for messages in helpful),
            "safety": ({"messages": messages} for messages in safe),
            "sft": ({"messages": messages} for messages in both),
            "unsafe_prompts": [one for one in prompts["test"] if one.source.rpartition("/")[2] in UNSAFE],
        }
        for name, rows in sets.items():
            stage.write_rows(f"{name}.jsonl", rows)


if __name__ == "__main__":
    run_recipe(main, SimulatedSafetyDataConfig)
