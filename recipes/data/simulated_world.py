"""Make a simulated world: its web text, people's demonstrations and disjoint prompt sets, with a known ground truth.

Stands in for what the paper has and a laptop has not: a pretraining corpus (section 2), SFT annotations (3.1) and
annotators' prompts (3.2.1). Another seed is another world of the same structure.

    python recipes/data/simulated_world.py --config recipes/configs/embedded/simulated_world.yaml --output runs/world
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rlhf.configuration import run_recipe
from rlhf.jsonl import Row
from rlhf.simulation.corpus import Mixture, chat_sets, demonstrations, held_out_keys, prompt_sets, web_text
from rlhf.simulation.world import World, WorldConfig
from rlhf.stage import StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class SimulatedWorldConfig(StageConfig):
    """What to make.

    Args:
        world: the land and its seed.
        mixture: how many rows of what.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    mixture: Mixture = field(default_factory=Mixture)


def main(config: SimulatedWorldConfig) -> None:
    stage = open_stage(config, one_process=True)
    with stage.work() as folder:
        world = World.make(config.world)
        world.save(folder / "world.json")
        prompts = prompt_sets(world, config.mixture)
        held_out = held_out_keys(prompts)
        sets: dict[str, Iterable[Row]] = {
            "pretrain": ({"text": text} for text in web_text(world, config.mixture, held_out)),
            "sft": ({"messages": messages} for messages in demonstrations(world, config.mixture, held_out)),
            "prompts": prompts["train"],
            "validation_prompts": prompts["validation"],
            "test_prompts": prompts["test"],
        }
        for name, chats in chat_sets(world, config.mixture).items():
            if chats:
                sets[name] = [{"messages": messages} for messages in chats]
        for name, rows in sets.items():
            stage.write_rows(f"{name}.jsonl", rows)


if __name__ == "__main__":
    run_recipe(main, SimulatedWorldConfig)
