"""Compare ways to train a reward model, over several seeds (Llama 2 paper, section 3.2.2, appendices A.3.3 and A.3.4).

A study is a reward model, named variants of it (margin none, small, large; auxiliary safety loss on and off; models of
several sizes; a chat model's weights or random ones; one model a domain or one for both), and seeds. Each variant is
trained on each seed, also on fractions of its training pairs where asked, and measured on the same held-out pairs of
both domains. Every figure stands with its mean and 95 % interval over the seeds, and with what it gains over the first
variant on the same seeds; accuracy also with what it gains over a bag of words of the same training pairs.

    python recipes/studies/reward_study.py --config recipes/configs/embedded/margin_study.yaml

Writes into the output folder: a stage folder a trained model (stopped and started again, the study goes on after the
last finished one), study.json and index.html (tables and plots); prints the tables in Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rlhf.configuration import run_recipe, with_models
from rlhf.data.loading import load_preferences
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.baselines import baseline_figures, baseline_scores
from rlhf.paths import require_files
from rlhf.report.pages.reward_study import build_study_page, markdown_tables
from rlhf.stage.fields import in_run
from rlhf.studies.reward_study import RewardStudyRun, StudyModel, gather, make_variant, pick, run_model
from rlhf.studies.runner import StudyConfig, require_different, require_named, run_each, unfinished, write_study


@dataclass(frozen=True, kw_only=True)
class RewardStudyConfig(StudyConfig):
    """A study of reward models.

    Args:
        model: what all variants have in common; in its paths {run} stands for the seed's run folder.
        variants: name -> {option of the model: value}, e.g. {large: {training.margin: large}}; the first one is what
            the others are compared with.
        test_preferences: held-out rows of both domains, files or hub names, {run} as above; a row without a domain
            counts as helpfulness.
        fractions: of a model's own training pairs; each variant is trained on each of them.
        on_bad_row: refuse stops at a bad row, skip leaves it out and counts it.
    """

    model: StudyModel
    variants: dict[str, dict[str, Any]]
    test_preferences: tuple[str, ...]
    fractions: tuple[float, ...] = (1.0,)
    on_bad_row: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_named(variants=self.variants, test_preferences=self.test_preferences, fractions=self.fractions)
        require_different(fractions=self.fractions)
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise InputError(f"fractions: must lie in (0, 1], got {list(self.fractions)}")
        for name in self.variants:
            if not re.fullmatch(r"[\w.+-][\w .+-]*", name):
                raise InputError(f"variants: a name must fit a folder (letters, digits, space, ._+-), got {name!r}")


def main(config: RewardStudyConfig) -> None:
    runs = plan(config)
    for run in runs:
        require_files(**{f"variants.{run.variant}: policy": run.model.policy})
    left = unfinished(runs)
    rows = load(runs, config)

    first = {run.test_preferences: run for run in runs if run.variant == runs[0].variant}  # one a run folder
    baselines = []
    for run in first.values():
        test = pick(rows, run.test_preferences)
        baselines.append(baseline_figures(test, baseline_scores(test, pick(rows, run.model.preferences))))
    run_each(left, partial(run_model, rows=rows))
    write_study(config.output, partial(gather, runs, config.output, baselines), build_study_page, markdown_tables)


def plan(config: RewardStudyConfig) -> list[RewardStudyRun]:
    """All trainings of a study, seed after seed, so that a stopped one has whole seeds."""
    models = {name: make_variant(config.model, name, options) for name, options in config.variants.items()}
    runs = [
        RewardStudyRun(
            output=config.output / f"{name}_{fraction:g}_seed{seed}",
            **config.of_each_training,
            variant=name,
            fraction=fraction,
            seed=seed,
            model=in_run(model, run),
            test_preferences=in_run(config.test_preferences, run),
        )
        for seed, run in config.folders
        for name, model in models.items()
        for fraction in config.fractions
    ]
    return [with_models(run) for run in runs]


def load(runs: Sequence[RewardStudyRun], config: RewardStudyConfig) -> dict[str, Any]:
    """source -> its rows, of all sources that the runs name; each is read once."""
    sources = dict.fromkeys(source for run in runs for source in (*run.model.preferences, *run.test_preferences))
    return {source: load_preferences(source, on_bad_row=config.on_bad_row) for source in sources}


if __name__ == "__main__":
    run_recipe(main, RewardStudyConfig)
