"""What more safety data does, over several seeds (Llama 2 paper, section 4.2.3, figures 15 and 16; decision 51).

A pretrained model is fine-tuned on all helpfulness data and on 0, 1, 10, 25, 50 and 100 % of the safety data, and
answers held-out prompts. Measured at each part: mean safety score and its left tail on unsafe prompts, helpfulness on
ordinary ones, and refusals of what should be answered.

    python recipes/studies/safety_study.py --config recipes/configs/embedded/safety_study.yaml

Writes into the output folder: a stage folder a variant (stopped and started again, the study goes on after the last
finished one), study.json and index.html (tables and plots); prints the tables in Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rlhf.configuration import run_recipe, with_models
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.pages.safety_study import build_safety_study_page, markdown_tables
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage.fields import in_run
from rlhf.studies.runner import StudyConfig, require_named, run_each, unfinished, write_study
from rlhf.studies.safety_study import SafetyStudyRun, gather, run_variant


@dataclass(frozen=True, kw_only=True)
class SafetyStudyConfig(RoomConfig, StudyConfig):
    """A study of safety data.

    Args:
        policy: pretrained checkpoint to start from, with a chat template.
        helpfulness_data: dialogues that every variant trains on, files or hub names.
        safety_data: dialogues of which each variant trains on a part.
        prompts: name -> held-out prompts, as for recipes/evaluation/evaluate_safety.py.
        kinds: name of a source of prompts -> the kind of all of them.
        fractions: parts of the safety data, the smallest first.
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
    kinds: dict[str, str] = field(default_factory=dict)
    fractions: tuple[float, ...] = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)
    helpfulness: str | None = None
    safety: str | None = None
    scorer: str | None = None
    world: str | None = None
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    samples_per_prompt: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("helpfulness_data", "safety_data", "prompts", "fractions")
        require_named(**{name: getattr(self, name) for name in names})
        for name in self.kinds:
            if name not in self.prompts:
                raise InputError(f"kinds: {name} is none of the prompts' sources ({', '.join(self.prompts)})")
        if not all(0 <= part <= 1 for part in self.fractions):
            raise InputError(f"fractions: must lie in [0, 1], got {list(self.fractions)}")
        if list(self.fractions) != sorted(set(self.fractions)):
            raise InputError(f"fractions: must rise from one to the next, got {list(self.fractions)}")
        if self.samples_per_prompt < 1:
            raise InputError(f"samples_per_prompt: must be at least 1, got {self.samples_per_prompt}")
        if (self.scorer is None) != (self.world is None):
            raise InputError("scorer, world: a gold scorer needs its world; name both or neither")


def main(config: SafetyStudyConfig) -> None:
    runs = plan(config)
    left = unfinished(runs)

    run_each(left, run_variant)
    write_study(config.output, partial(gather, runs, config.output), build_safety_study_page, markdown_tables)


def plan(config: SafetyStudyConfig) -> list[SafetyStudyRun]:
    """All variants of a study, seed after seed, so that a stopped one has whole seeds."""

    def one(fraction: float, seed: int, run: str) -> SafetyStudyRun:
        of = in_run(config, run)
        study = SafetyStudyRun(
            output=config.output / f"safety_{100 * fraction:g}_seed{seed}",
            **config.of_each_training,
            fraction=fraction,
            seed=seed,
            policy=Path(of.policy),
            helpfulness_data=of.helpfulness_data,
            safety_data=of.safety_data,
            prompts=of.prompts,
            kinds=config.kinds,
            helpfulness=of.helpfulness,
            safety=of.safety,
            scorer=config.scorer,
            world=None if of.world is None else Path(of.world),
            finetuning=config.finetuning,
            sampling=config.sampling,
            samples_per_prompt=config.samples_per_prompt,
            too_long=config.too_long,
        )
        return with_models(study)

    return [one(part, seed, run) for seed, run in config.folders for part in config.fractions]


if __name__ == "__main__":
    run_recipe(main, SafetyStudyConfig)
