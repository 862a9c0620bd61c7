"""The paper-style table of several models: ARC, HellaSwag, MMLU, TruthfulQA and their mean (QLoRA report, section 4.1).

Each model answers the four tasks of the first Open LLM Leaderboard through the lm-evaluation-harness, with the report's
numbers of examples and metrics. A model may be whole, or an adapter, which is evaluated on its base without merging.
Data come from the hub, or from local files of the published form.

    python recipes/evaluation/leaderboard.py --config recipes/configs/stories260k/leaderboard.yaml

Writes into the output folder: leaderboard.json (scores, standard errors, subjects) and leaderboard.md, the table, which
is printed too. A run that breaks off goes on with the tasks that have no score yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import quote

from rlhf.configuration import run_recipe, to_plain
from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.leaderboard import (
    TASKS,
    TaskScore,
    load_as_saved,
    run_task,
    write_local_task,
)
from rlhf.imports import require_packages
from rlhf.report.drawing.tables import as_markdown
from rlhf.report.pages.leaderboard import leaderboard_table
from rlhf.sampling.source import ScoringPolicy
from rlhf.stage import (
    InputPath,
    KeepingConfig,
    Kept,
    Stage,
    digest,
    on_main_process,
    open_stage,
    options_of,
    write_json,
)
from rlhf.training.work import launched_work

TaskName = Literal["arc", "hellaswag", "mmlu", "truthfulqa"]


@dataclass(frozen=True, kw_only=True)
class LeaderboardConfig(KeepingConfig):
    """Several models on the four tasks.

    Args:
        models: name -> policy, whole or an adapter (docs/policies.md); its `rows` are choices at once, by default 8.
        tasks: which of the four; their order is that of the table.
        local: task -> file or folder that takes the place of the hub's data.
        limit: the first questions only, this many of each task (of each subject of MMLU); null: all.
    """

    models: dict[str, ScoringPolicy]
    tasks: tuple[TaskName, ...] = ("arc", "hellaswag", "mmlu", "truthfulqa")
    local: dict[TaskName, InputPath] = field(default_factory=dict)
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("models: must name at least one policy, e.g. --models.mine FOLDER")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"tasks: must name each of {', '.join(TASKS)} at most once, got {list(self.tasks)}")
        unknown = [task for task in self.local if task not in self.tasks]
        if unknown:
            raise InputError(
                f"local: {unknown[0]} is none of the tasks {', '.join(self.tasks)}; name it there too, or leave it out"
            )
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit: must be at least 1, got {self.limit}")


def main(config: LeaderboardConfig) -> None:
    stage = open_stage(config, one_process=True)
    require_packages("tasks: the leaderboard needs", "lm_eval")
    settings = {"tasks": {task: digest(path) for task, path in config.local.items()}, "limit": config.limit}
    options, rounding = options_of(config, stage.inputs)
    settings |= {name: to_plain(value) for name, value in options.items() if name.startswith("models.")}
    read = tuple(name for name in stage.inputs if name.startswith("models."))
    kept = Kept("scores", "scores", inputs=read, values=settings, rounding=rounding)

    with TemporaryDirectory() as tasks, launched_work(stage, kept) as accelerator:
        local = {t: write_local_task(t, path, Path(tasks)) for t, path in config.local.items()}
        scores: dict[str, dict[str, TaskScore]] = {}
        for name, source in config.models.items():
            files = {task: stage.folder / kept.name / f"{quote(name, safe='')}.{task}.json" for task in config.tasks}
            missing = [task for task, file in files.items() if not file.is_file()]
            if missing:
                model, tokenizer = load_as_saved(source, accelerator.device)
            for task in missing:
                score = run_task(
                    model,
                    tokenizer,
                    task,
                    local=local.get(task, ()),
                    tasks_folder=Path(tasks),
                    limit=config.limit,
                    rows=source.rows or 8,
                )
                write_json(files[task], asdict(score))
            scores[name] = {task: TaskScore(**json.loads(file.read_text())) for task, file in files.items()}
        record_scores(stage, scores)


@on_main_process
def record_scores(stage: Stage, scores: Mapping[str, Mapping[str, TaskScore]]) -> None:
    """Write the scores and their table, and show it."""
    table = as_markdown(leaderboard_table(scores))
    (stage.folder / "leaderboard.md").write_text(table + "\n", encoding="utf-8")
    rows = {name: {task: asdict(score) for task, score in row.items()} for name, row in scores.items()}
    stage.write_json("leaderboard.json", rows, shown=table)


if __name__ == "__main__":
    run_recipe(main, LeaderboardConfig)
