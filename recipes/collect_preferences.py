"""Collect preferences over the newest models' answers (Llama 2 paper, section 3.2.1).

For each prompt two answers are drawn, from two model variants and at different temperatures, so that they differ. An
annotator must choose one, and says how much better it is and whether each is safe. Pairs that the annotator gives back
(the same text twice, or an unsafe answer chosen over a safe one) are left out and counted.

    python recipes/collect_preferences.py --config recipes/configs/embedded/collect_preferences.yaml

Writes into the output folder, as rows of rlhf.data.rows: preferences_train.jsonl, preferences_test.jsonl (of prompts
that no training reads), and statistics.json (the paper's table: sizes, lengths, strengths, safety labels; by domain).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, get_args

from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Domain, Preference
from rlhf.data.statistics import preference_statistics
from rlhf.errors import InputError
from rlhf.imports import make_object
from rlhf.models.fields import Checkpoint
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage import Effect, InputPath, StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class CollectPreferencesConfig(StageConfig):
    """Preference collection.

    Args:
        policy: checkpoint folder of the newest model; it gives the first answer.
        prompts: prompts whose pairs are trained on (file or hub name).
        test_prompts: other prompts, whose pairs measure the reward models.
        world: file or folder that the annotator is made from.
        second_policy: checkpoint folder of another variant, which gives the second answer; null: `policy` again.
        annotator: `package.module:Class`, called with (world, seed); its compare(messages, a, b, domain) gives a
            Preference or None.
        temperatures: of the first and of the second answer.
        pairs_per_prompt: pairs drawn for each prompt.
        safety_pairs_per_prompt: the same for prompts of domain safety; null: as for the others.
        sampling: length of the answers; its temperature is not used.
        batch_size: answers drawn at once; null: as many as memory holds, and no more than pay.
        seed: of the draws (added to sampling.seed) and of the annotator.
    """

    policy: Checkpoint
    prompts: DataSource
    test_prompts: DataSource
    world: InputPath
    second_policy: Checkpoint | None = None
    annotator: str = "rlhf.simulation.annotator:SimulatedAnnotator"
    temperatures: tuple[float, float] = (0.8, 1.2)
    pairs_per_prompt: int = 1
    safety_pairs_per_prompt: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    batch_size: Annotated[int | None, Effect.ROUNDING] = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs_per_prompt", "safety_pairs_per_prompt", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}: must be at least 1, got {value}")
        if min(self.temperatures) <= 0:
            raise InputError(f"temperatures: must be above 0, got {self.temperatures}")


def main(config: CollectPreferencesConfig) -> None:
    stage = open_stage(config)
    policies = [config.policy, config.second_policy or config.policy]
    parts = {"train": load_prompts(config.prompts), "test": load_prompts(config.test_prompts)}
    prompts = [prompt for part in parts.values() for prompt in part]
    pairs = {
        "safety": config.safety_pairs_per_prompt or config.pairs_per_prompt,
        "helpfulness": config.pairs_per_prompt,
    }
    annotator = make_object("annotator", config.annotator, config.world, config.seed)

    from rlhf.conversation import Renderer
    from rlhf.models.policy import load_policy, load_tokenizer
    from rlhf.sampling.in_process import InProcessSampler
    from rlhf.sampling.multi_process import sample_distributed
    from rlhf.training.accelerator import make_accelerator

    accelerator = make_accelerator(seed=config.seed)
    with stage.work(accelerator):
        drawn: list[list[list[str]]] = [[] for _ in prompts]  # by place: the two files may number their rows alike
        for number, (path, temperature) in enumerate(zip(policies, config.temperatures, strict=True)):
            policy = load_policy(path).to(accelerator.device)
            sampler = InProcessSampler(policy, Renderer(load_tokenizer(path)), config.batch_size)
            seed = config.sampling.seed + 2 * config.seed + number  # two answers never share their draws
            params = replace(config.sampling, temperature=temperature, seed=seed)
            for count in {pairs[prompt.domain] for prompt in prompts}:
                places = [i for i, prompt in enumerate(prompts) if pairs[prompt.domain] == count]
                asked = [prompts[i] for i in places]
                answers = sample_distributed(sampler, [p.messages for p in asked], count, params, accelerator, places)
                for place, samples in zip(places, answers, strict=True):
                    drawn[place].append([sample.text for sample in samples])
        if stage.is_main:
            rows: list[Preference] = []
            pairs_of = iter(drawn)
            for part, asked in parts.items():
                compared = [
                    annotator.compare(prompt.messages, a, b, prompt.domain)
                    for prompt in asked
                    for a, b in zip(*next(pairs_of), strict=True)
                ]
                kept = [row for row in compared if row is not None]
                stage.write_rows(f"preferences_{part}.jsonl", (row.to_dict() for row in kept))
                rows += kept
            domains = {"all": rows} | {d: [row for row in rows if row.domain == d] for d in get_args(Domain)}
            tokenizer = load_tokenizer(config.policy)
            statistics = {name: preference_statistics(part, tokenizer) for name, part in domains.items() if part}
            left_out = sum(len(first) for first, _ in drawn) - len(rows)
            stage.write_json("statistics.json", statistics | {"left_out": left_out})
            stage.closing.rows(len(rows), {"the annotator saw no difference": left_out})


if __name__ == "__main__":
    run_recipe(main, CollectPreferencesConfig)
