"""Does a policy answer by the date in the context? (Llama 2 paper, section 5.2.)

Each policy answers the questions of a test file of recipes/data/time_awareness.py; a rule compares the answers with
what held at the date. Facts and years that training held out stand apart: a policy that learned the rows by heart fails
there, one that puts what it knows in order by time does not.

    python recipes/evaluation/evaluate_time_awareness.py --config recipes/configs/embedded/evaluate_time_awareness.yaml

Writes into the output folder: time_awareness.json (the figures), answers.jsonl (every answer, right or wrong); prints a
table in Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.evaluation.instructions.time_awareness import DatedAnswer, time_figures
from rlhf.jsonl import read_as
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.pages.time_awareness import time_table
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.source import PolicyCheck, PolicySource
from rlhf.stage import Stage, StageConfig, on_main_process, open_stage
from rlhf.stage.fields import ExistingPath, InEachRun, in_run, inputs_in_run
from rlhf.synthesis.time_awareness import DatedQuestion, question_of
from rlhf.training.work import launched_work

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class EvaluateTimeAwarenessConfig(RoomConfig, StageConfig):
    """What to measure.

    In paths {run} stands for each run folder in turn.

    Args:
        policies: name -> policy (docs/policies.md); the first one is what the others are compared with.
        test: test.jsonl of recipes/data/time_awareness.py.
        runs: run folders; the figures are over all of them.
        sampling: how answers are drawn; temperature 0 takes the likeliest token.
        seed: added to sampling.seed.
    """

    policies: dict[str, Annotated[PolicySource, InEachRun(PolicyCheck())]]
    test: Annotated[str, InEachRun(ExistingPath())]
    runs: tuple[str, ...] = (".",)
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0, max_new_tokens=64))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("policies", "runs"):
            if not getattr(self, name):
                raise InputError(f"{name}: must name at least one")
        differing = any(in_run(part, "") != part for part in (self.test, *self.policies.values()))
        if len(self.runs) > (len(set(self.runs)) if differing else 1):
            raise InputError(
                f"runs: the same answers would count {len(self.runs)} times, got {', '.join(self.runs)}; name others, "
                "and write {run} in the paths of policies or test"
            )


def main(config: EvaluateTimeAwarenessConfig) -> None:
    stage = open_stage(config)
    policies = [(name, run, in_run(source, run)) for name, source in config.policies.items() for run in config.runs]
    tests = {run: Path(in_run(config.test, run)) for run in config.runs}
    questions = {run: questions_with_room(stage, config, run, path) for run, path in tests.items()}

    with launched_work(stage) as accelerator:
        answers: list[DatedAnswer] = []
        for name, run, source in policies:
            answers += answered(name, run, source, questions[run], config, accelerator)
        record_answers(stage, answers)


@on_main_process
def record_answers(stage: Stage, answers: Sequence[DatedAnswer]) -> None:
    """Write answers and figures, and show the table."""
    figures = time_figures(answers)
    stage.write_rows("answers.jsonl", answers)
    stage.write_json("time_awareness.json", figures, shown=time_table(figures))
    stage.closing.rows(len(answers))
    stage.closing.suspect(suspicious_ends(answer.finished for answer in answers))


def read_questions(path: Path) -> list[tuple[Conversation, DatedQuestion]]:
    """The rows of a test file. InputError names file and line."""
    return read_as(path, question_of)


def questions_with_room(
    stage: Stage, config: EvaluateTimeAwarenessConfig, run: str, test: Path
) -> list[tuple[Conversation, DatedQuestion]]:
    """A run's questions, by `too_long`, in the contexts of its policies."""
    readers, most = inputs_in_run(stage.inputs, config.runs.index(run)), config.sampling.max_new_tokens
    return answerable(stage, read_questions(test), most, messages=lambda row: row[0], inputs=readers)


def answered(
    name: str,
    run: str,
    source: PolicySource,
    questions: list[tuple[Conversation, DatedQuestion]],
    config: EvaluateTimeAwarenessConfig,
    accelerator: Accelerator,
) -> list[Any]:
    """One policy's answers to a run's questions, checked."""
    sampler = open_sampler(source, accelerator.device, too_long=config.too_long, field=f"policies.{name}")
    params = config.sampling.seeded(config.seed)
    drawn = sample_distributed(sampler, [messages for messages, _ in questions], 1, params, accelerator)
    return [
        DatedAnswer(
            name,
            run,
            asked.group,
            asked.fact.period(asked.day),
            messages,
            sample.text,
            asked.fact.is_right(sample.text, asked.day),
            sample.finished,
        )
        for (messages, asked), (sample,) in zip(questions, drawn, strict=True)
    ]


if __name__ == "__main__":
    run_recipe(main, EvaluateTimeAwarenessConfig)
