"""Collect preferences over the newest models' answers (Llama 2 paper, section 3.2.1).

For each prompt two answers are drawn, from two model variants and at different temperatures, so that they differ. An
annotator must choose one, and says how much better it is and whether each is safe. Pairs that the annotator gives back
(the same text twice, or an unsafe answer chosen over a safe one) are left out and counted.

    python recipes/collect_preferences.py --config recipes/configs/embedded/collect_preferences.yaml

Writes into the output folder, as rows of rlhf.data.rows: preferences_train.jsonl, preferences_test.jsonl (held out by
first turn, the same prompts in every version), and statistics.json (the paper's table: sizes, lengths, strengths,
safety labels; over all rows and by domain).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from rlhf.configuration import run_recipe
from rlhf.data.jsonl import file_format, write_rows
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Domain
from rlhf.data.splitting import split_by_first_turn
from rlhf.data.statistics import preference_statistics
from rlhf.errors import InputError
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage import open_stage, require_files, write_json


@dataclass(frozen=True)
class CollectPreferencesConfig:
    """Preference collection.

    Args:
        output: folder of this stage.
        policy: checkpoint folder of the newest model; it gives the first answer.
        prompts: prompts to answer (file or hub name).
        world: file or folder that the annotator is made from.
        second_policy: checkpoint folder of another variant, which gives the second answer; null: `policy` again.
        annotator: `package.module:Class`, called with (world, seed); its compare(messages, a, b, domain) gives a
            Preference or None.
        temperatures: of the first and of the second answer.
        pairs_per_prompt: pairs drawn for each prompt.
        test_share: share of the prompts, by first turn, whose pairs are held out.
        sampling: length of the answers; its temperature is not used.
        batch_size: answers drawn at once.
        seed: of the draws (added to sampling.seed) and of the annotator.
    """

    output: Path
    policy: Path
    prompts: str
    world: Path
    second_policy: Path | None = None
    annotator: str = "rlhf.simulation.annotator:SimulatedAnnotator"
    temperatures: tuple[float, float] = (0.8, 1.2)
    pairs_per_prompt: int = 1
    test_share: float = 0.2
    sampling: SamplingParams = field(default_factory=SamplingParams)
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs_per_prompt", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if min(self.temperatures) <= 0:
            raise InputError(f"temperatures: must be above 0, got {self.temperatures}")
        if not 0 < self.test_share < 1:
            raise InputError(f"test_share: must lie between 0 and 1, got {self.test_share}")


def main(config: CollectPreferencesConfig) -> None:
    policies = [config.policy, config.second_policy or config.policy]
    inputs: dict[str, Any] = {"policy": policies[0], "second_policy": policies[1], "world": config.world}
    inputs |= {"prompts": Path(config.prompts)} if file_format(config.prompts) else {}
    require_files(**inputs)
    prompts = load_prompts(config.prompts)

    from rlhf.conversation import Renderer
    from rlhf.imports import import_object
    from rlhf.models.policy import load_policy, load_tokenizer
    from rlhf.sampling.in_process import InProcessSampler
    from rlhf.sampling.multi_process import sample_distributed
    from rlhf.training.accelerator import make_accelerator

    annotator = import_object("annotator", config.annotator)(config.world, config.seed)
    accelerator = make_accelerator(seed=config.seed)
    with open_stage(config.output, config, inputs=inputs) as folder:
        accelerator.wait_for_everyone()
        answers = []
        for number, (path, temperature) in enumerate(zip(policies, config.temperatures, strict=True)):
            policy = load_policy(path).to(accelerator.device)
            sampler = InProcessSampler(policy, Renderer(load_tokenizer(path)), config.batch_size)
            seed = config.sampling.seed + 2 * config.seed + number  # two answers never share their draws
            params = replace(config.sampling, temperature=temperature, seed=seed)
            messages = [prompt.messages for prompt in prompts]
            answers.append(sample_distributed(sampler, messages, config.pairs_per_prompt, params, accelerator))
        if accelerator.is_main_process:
            pairs = [
                annotator.compare(prompt.messages, a.text, b.text, prompt.domain)
                for prompt, first, second in zip(prompts, *answers, strict=True)
                for a, b in zip(first, second, strict=True)
            ]
            rows = [pair for pair in pairs if pair is not None]
            shares = {"train": 1 - config.test_share, "test": config.test_share}
            # one split for all versions: what is held out once is never trained on
            for part, held in split_by_first_turn(rows, shares, seed=0, key=lambda row: row.messages).items():
                write_rows(folder / f"preferences_{part}.jsonl", (row.to_dict() for row in held))
            domains = {"all": rows} | {d: [row for row in rows if row.domain == d] for d in get_args(Domain)}
            renderer = Renderer(load_tokenizer(config.policy))
            statistics = {name: preference_statistics(part, renderer) for name, part in domains.items() if part}
            write_json(folder / "statistics.json", statistics | {"left_out": len(pairs) - len(rows)})
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_recipe(main, CollectPreferencesConfig)
