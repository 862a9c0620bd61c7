"""What more safety data does (Llama 2 paper, section 4.2.3, "Impact of Safety Data Scaling").

As in the paper, a pretrained model is fine-tuned on all helpfulness data and on a growing part of the safety data, and
each variant's answers are scored. Torch is loaded late.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rlhf.conversation import Conversation
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations
from rlhf.evaluation.safety.figures import SafetyFigures, load_safety_prompts, safety_figures
from rlhf.evaluation.safety.judging import answer_and_judge, load_judges
from rlhf.evaluation.safety.study import OverSeeds, Part, SafetyStudy
from rlhf.finetuning.config import FinetuneStageConfig
from rlhf.finetuning.stage import finetune_stage
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.models.checkpoint.fields import TrainedCheckpoint
from rlhf.rewards.specs import Reward
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.source import PolicySource
from rlhf.stage import InputPath, open_stage
from rlhf.studies.runner import StudyRun, over_seeds
from rlhf.training.work import training_work

FIGURES = "safety_evaluation.json"
# name -> where it stands in the figures of one variant; of several places the first that is there
STUDIED: dict[str, tuple[tuple[str, ...], ...]] = {
    "safety": (("scores", "safety", "unsafe", "mean"),),
    "tail": (("scores", "safety", "unsafe", "tail"),),
    "gold_safety": (("scores", "gold_safety", "unsafe", "mean"),),
    "violations": tuple(("judges", judge, "violation", "all", "rate") for judge in ("gold", "refusal detector")),
    "helpfulness": (("scores", "helpfulness", "ordinary", "mean"),),
    "gold_helpfulness": (("scores", "gold_helpfulness", "ordinary", "mean"),),
    "refuses_ordinary": (("judges", "refusal detector", "false_refusal", "ordinary", "rate"),),
    "refuses_borderline": (("judges", "refusal detector", "false_refusal", "borderline", "rate"),),
}


@dataclass(frozen=True, kw_only=True)
class SafetyStudyRun(RoomConfig, StudyRun, FinetuneStageConfig):
    """One variant: all helpfulness rows and `fraction` of the safety rows."""

    policy: TrainedCheckpoint
    helpfulness_data: tuple[DataSource, ...]
    safety_data: tuple[DataSource, ...]
    prompts: dict[str, DataSource]
    kinds: dict[str, str]
    helpfulness: Reward | None
    safety: Reward | None
    scorer: str | None
    world: InputPath | None
    sampling: SamplingParams
    samples_per_prompt: int


def training_rows(
    helpfulness: Sequence[Conversation], safety: Sequence[Conversation], fraction: float, seed: int
) -> list[Conversation]:
    """All helpfulness rows and `fraction` of the safety rows; a smaller part lies in a larger one (decision 51)."""
    drawn = list(safety)
    random.Random(seed).shuffle(drawn)
    return [*helpfulness, *drawn[: round(fraction * len(drawn))]]


def run_variant(run: SafetyStudyRun) -> None:
    """Fine-tune one variant, let it answer, judge: metrics.jsonl and safety_evaluation.json in its stage folder.

    The weights are not kept.
    """
    stage = open_stage(run)
    helpful, safe = (
        [row for source in sources for row in load_conversations(source)]
        for sources in (run.helpfulness_data, run.safety_data)
    )
    with training_work(stage) as accelerator:
        judges = load_judges(
            "rules", run.safety, run.helpfulness, None, run.scorer, run.world, accelerator, run.too_long
        )
        prompts = [
            prompt
            for name, source in run.prompts.items()
            for prompt in load_safety_prompts(name, source, run.kinds.get(name), judges.kind_of)
        ]
        prompts = answerable(stage, prompts, run.sampling.max_new_tokens, messages=lambda one: one.prompt.messages)
        rows = training_rows(helpful, safe, run.fraction, run.seed)
        policy = finetune_stage(stage, accelerator, run.policy, rows, run, name=run.name, save=False)
        params = replace(run.sampling, seed=run.sampling.seed + run.seed)
        source = PolicySource(checkpoint=run.policy)
        sampler = open_sampler(source, accelerator.device, too_long=run.too_long, model=policy)
        judged = answer_and_judge(sampler, prompts, judges, params, run.samples_per_prompt, accelerator)
        stage.write_json(FIGURES, safety_figures(run.name, judged))


def gather(runs: Sequence[SafetyStudyRun], output: Path) -> SafetyStudy:
    """Each figure's mean and 95 % interval over the seeds, part by part.

    Args:
        runs: all finished, in `output`; each part on the same seeds, the smallest first.
    """
    found: dict[float, list[SafetyFigures]] = {}
    for run in runs:
        figures: SafetyFigures = json.loads((output / run.name / FIGURES).read_text(encoding="utf-8"))
        found.setdefault(run.fraction, []).append(figures)
    values = {
        fraction: {name: own for name in STUDIED if (own := _values(name, seeds)) is not None}
        for fraction, seeds in found.items()
    }
    fractions = list(found)
    parts: list[Part] = []
    for number, fraction in enumerate(fractions):
        first, before = values[fractions[0]], values[fractions[max(0, number - 1)]]
        parts.append(
            {
                "fraction": fraction,
                "figures": {
                    name: cast(
                        OverSeeds,
                        over_seeds(own, gain=first[name] if number else None, step=before[name] if number else None),
                    )
                    for name, own in values[fraction].items()
                },
                "histogram": _histogram(found[fraction]),
            }
        )
    return {"seeds": len(found[fractions[0]]), "parts": parts}


def _values(name: str, seeds: Sequence[SafetyFigures]) -> list[float] | None:
    for place in STUDIED[name]:
        values = [_at(figures, place) for figures in seeds]
        if all(value is not None for value in values):
            return values
    return None


def _at(figures: Any, place: Sequence[str]) -> Any:
    for key in place:
        figures = None if figures is None else figures.get(key)
    return figures


def _histogram(seeds: Sequence[SafetyFigures]) -> list[int] | None:
    counts = [_at(figures, ("scores", "safety", "unsafe", "histogram")) for figures in seeds]
    return None if None in counts else [sum(bins) for bins in zip(*counts, strict=True)]
