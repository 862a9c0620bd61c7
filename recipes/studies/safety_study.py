"""What more safety data does, over several seeds (Llama 2 paper, section 4.2.3, figures 15 and 16; decision 51).

A pretrained model is fine-tuned on all helpfulness data and on 0, 1, 10, 25, 50 and 100 % of the safety data, and
answers held-out prompts. Measured at each part: mean safety score and its left tail on unsafe prompts, helpfulness on
ordinary ones, and refusals of what should be answered.

    python recipes/studies/safety_study.py --config recipes/configs/embedded/safety_study.yaml

Writes into the output folder: a stage folder a variant (stopped and started again, the study goes on after the last
finished one), study.json and index.html (tables and plots); prints the tables in Markdown.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.configuration import run_recipe
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage import KeepingConfig, inputs_of, write_json
from rlhf.studies.reward_study import inside, is_finished
from rlhf.studies.safety_study import SafetyStudyRun, gather, run_variant


@dataclass(frozen=True, kw_only=True)
class SafetyStudyConfig(KeepingConfig):
    """A study of safety data. In each path {run} stands for the seed's run folder.

    Args:
        policy: pretrained checkpoint to start from, with a chat template.
        helpfulness_data: dialogues that every variant trains on, files or hub names.
        safety_data: dialogues of which each variant trains on a part.
        prompts: name -> held-out prompts, as for recipes/evaluation/evaluate_safety.py.
        runs: run folders that {run} stands for: one a seed, or one for all seeds.
        kinds: name of a source of prompts -> the kind of all of them.
        fractions: parts of the safety data, the smallest first.
        seeds: of the parts, the order of the rows and the answers.
        helpfulness: reward-model folder, or `package.module:attribute` of your own reward function.
        safety: the same for safety.
        scorer: `package.module:Class` of a gold scorer, called with `world`.
        world: the file or folder that the scorer reads.
        finetuning: length, masking, schedule.
        sampling: how answers are drawn.
        samples_per_prompt: answers to each prompt.
    """

    policy: str
    helpfulness_data: tuple[str, ...]
    safety_data: tuple[str, ...]
    prompts: dict[str, str]
    runs: tuple[str, ...]
    kinds: dict[str, str] = field(default_factory=dict)
    fractions: tuple[float, ...] = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    helpfulness: str | None = None
    safety: str | None = None
    scorer: str | None = None
    world: str | None = None
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    samples_per_prompt: int = 1

    def __post_init__(self) -> None:
        for name in ("helpfulness_data", "safety_data", "prompts", "fractions", "seeds"):
            if not getattr(self, name):
                raise InputError(f"{name}: must name at least one")
        for name in self.kinds:
            if name not in self.prompts:
                raise InputError(f"kinds: {name} is none of the prompts' sources ({', '.join(self.prompts)})")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds: must differ from each other, got {list(self.seeds)}")
        if not all(0 <= part <= 1 for part in self.fractions):
            raise InputError(f"fractions: must lie in [0, 1], got {list(self.fractions)}")
        if list(self.fractions) != sorted(set(self.fractions)):
            raise InputError(f"fractions: must rise from one to the next, got {list(self.fractions)}")
        if len(self.runs) not in (1, len(self.seeds)):
            raise InputError(f"runs: must be one a seed ({len(self.seeds)}), or one for all, got {len(self.runs)}")
        if self.samples_per_prompt < 1:
            raise InputError(f"samples_per_prompt: must be at least 1, got {self.samples_per_prompt}")
        if (self.scorer is None) != (self.world is None):
            raise InputError("scorer, world: a gold scorer needs its world; name both or neither")


def main(config: SafetyStudyConfig) -> None:
    runs = plan(config)
    for run in runs:
        inputs_of(run)  # a missing file is named before any is read
    left = [run for run in runs if not is_finished(run)]

    from rlhf.report.pages.safety_study import build_safety_study_page, markdown_tables

    for number, run in enumerate(left, start=1):
        print(f"[{number}/{len(left)}] {run.name}", file=sys.stderr)
        run_variant(run)
    if os.environ.get("RANK", "0") == "0":
        study = gather(runs, config.output)
        write_json(config.output / "study.json", study)
        build_safety_study_page(study, config.output / "index.html", config.output.name)
        print(markdown_tables(study))


def plan(config: SafetyStudyConfig) -> list[SafetyStudyRun]:
    """All variants of a study, seed after seed, so that a stopped one has whole seeds."""
    folders = config.runs * len(config.seeds) if len(config.runs) == 1 else config.runs

    def one(fraction: float, seed: int, folder: str) -> SafetyStudyRun:
        def put(path: str | None) -> str | None:
            return None if path is None else path.replace("{run}", folder)

        world = put(config.world)
        return SafetyStudyRun(
            output=config.output / f"safety_{100 * fraction:g}_seed{seed}",
            strict=config.strict,
            fresh=config.fresh,
            fraction=fraction,
            seed=seed,
            policy=Path(config.policy.replace("{run}", folder)),
            helpfulness_data=inside(config.helpfulness_data, folder),
            safety_data=inside(config.safety_data, folder),
            prompts={name: source.replace("{run}", folder) for name, source in config.prompts.items()},
            kinds=config.kinds,
            helpfulness=put(config.helpfulness),
            safety=put(config.safety),
            scorer=config.scorer,
            world=None if world is None else Path(world),
            finetuning=config.finetuning,
            sampling=config.sampling,
            samples_per_prompt=config.samples_per_prompt,
        )

    return [
        one(part, seed, folder) for seed, folder in zip(config.seeds, folders, strict=True) for part in config.fractions
    ]


if __name__ == "__main__":
    run_recipe(main, SafetyStudyConfig)
