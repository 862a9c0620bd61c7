"""Demonstrations for safety fine-tuning, on a simulated world (Llama 2 paper, section 4.2.1).

Stands in for the paper's annotators, who wrote adversarial prompts and safe answers to them. No prompt of the world's
validation and test files is asked.

    python recipes/data/simulated_safety_data.py --config recipes/configs/embedded/simulated_safety_data.yaml
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from rlhf.configuration import run_recipe
from rlhf.data.loading import load_prompts
from rlhf.errors import InputError
from rlhf.jsonl import write_rows
from rlhf.paths import require_files
from rlhf.simulation.corpus import UNSAFE, held_out_keys
from rlhf.simulation.safety_texts import helpful_demonstrations, safe_demonstrations
from rlhf.simulation.world import World
from rlhf.stage import StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class SimulatedSafetyDataConfig(StageConfig):
    """What to make.

    Args:
        data: folder of recipes/data/simulated_world.py.
        helpfulness_rows, safety_rows: how many.
    """

    data: Path
    helpfulness_rows: int = 2000
    safety_rows: int = 600

    def __post_init__(self) -> None:
        for name in ("helpfulness_rows", "safety_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")


def main(config: SimulatedSafetyDataConfig) -> None:
    stage = open_stage(config)
    names = ("world.json", "validation_prompts.jsonl", "test_prompts.jsonl")
    files = {f"data: {name}": config.data / name for name in names}
    require_files(**files)
    with stage.work() as folder:
        world = World.load(config.data)
        sets = {name: load_prompts(config.data / f"{name}_prompts.jsonl") for name in ("validation", "test")}
        held_out = held_out_keys(sets)
        helpful = list(helpful_demonstrations(world, config.helpfulness_rows, held_out))
        safe = list(safe_demonstrations(world, config.safety_rows, held_out))
        both = [*helpful, *safe]
        random.Random(world.config.seed).shuffle(both)
        for name, rows in (("helpfulness", helpful), ("safety", safe), ("sft", both)):
            write_rows(folder / f"{name}.jsonl", ({"messages": messages} for messages in rows))
        unsafe = [prompt for prompt in sets["test"] if prompt.source.rpartition("/")[2] in UNSAFE]
        stage.write_rows("unsafe_prompts.jsonl", (prompt.to_dict() for prompt in unsafe))


if __name__ == "__main__":
    run_recipe(main, SimulatedSafetyDataConfig)
