"""MT-Bench: models answer questions of two turns, another model judges the answers (QLoRA report, section 4.3).

Each model answers the first turn of every question, then the second with its own first answer before it. A judge, any
OpenAI-compatible server, rates every answer from 1 to 10 (mode single), or says which of two models answered better
(mode pairwise: every model against the baseline, in both orders). For mathematics, reasoning and code it sees reference
answers. Of several judges the mean of the ratings counts, or the majority, and each one's figures stand beside. So does
how easily the answers read.

    python recipes/evaluation/mt_bench.py --config my_mt_bench.yaml

Writes into the output folder: answers.jsonl, judgements.jsonl, mt_bench.json (the figures) and index.html; prints a
table. A run that breaks off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.configuration import run_recipe, to_plain
from rlhf.conversation import Conversation
from rlhf.data.suspicion import suspicious_ends, suspicious_judge
from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.mt_bench import (
    TEMPERATURES,
    TURNS,
    JudgePrompt,
    Question,
    agreed,
    load_judge_prompts,
    load_questions,
    pairwise_request,
    panel_rating,
    rating,
    single_request,
    verdict,
)
from rlhf.evaluation.judging import judgements
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.drawing.tables import as_markdown
from rlhf.report.pages.mt_bench import build_mt_bench_page, judge_agreement, mt_bench_figures, mt_bench_table
from rlhf.rewards.pair_judge import majority
from rlhf.sampling.chat import ServerConfig, require_panel
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.source import AnsweringPolicy
from rlhf.stage import InputPath, KeepingConfig, Kept, Stage, on_main_process, open_stage, options_of
from rlhf.training.work import launched_work

Answers = Mapping[str, Sequence[Sequence[str]]]
"""Model -> question by question, its answer at each turn."""

Case = tuple[str, int, int, bool]
"""Model, question, turn, and whether its answers come first: what a judge is asked about at a time."""


@dataclass(frozen=True, kw_only=True)
class MTBenchConfig(RoomConfig, KeepingConfig):
    """Models, questions and judges.

    Args:
        models: name -> policy (docs/policies.md).
        judges: the servers that judge, and each judge's name there.
        questions: FastChat's question.jsonl, or one of that form.
        judge_prompts: FastChat's judge_prompts.jsonl, or one of that form.
        references: FastChat's reference answers, or some of that form.
        mode: single rates each answer; pairwise compares each model with the baseline.
        baseline: of pairwise, one of the models.
        max_new_tokens: longest answer.
        judge_max_new_tokens: longest judgement.
        seed: of the answers in categories that are not answered greedily.
    """

    models: dict[str, AnsweringPolicy]
    judges: tuple[ServerConfig, ...]
    questions: InputPath
    judge_prompts: InputPath
    references: InputPath | None = None
    mode: Literal["single", "pairwise"] = "single"
    baseline: str | None = None
    max_new_tokens: int = 1024
    judge_max_new_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("models: must name at least one policy, e.g. --models.mine FOLDER")
        if not self.judges:
            judge = "--judges '{url: http://localhost:8000/v1, model: NAME}'"
            raise InputError(f"judges: must name at least one, e.g. {judge}")
        require_panel("judges", self.judges)
        if self.mode == "pairwise" and (self.baseline not in self.models or len(self.models) < 2):
            raise InputError(
                f"baseline: pairwise needs one of the models ({', '.join(self.models)}) and another beside it, got "
                f"{self.baseline}"
            )
        for name in ("max_new_tokens", "judge_max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")


def main(config: MTBenchConfig) -> None:
    stage = open_stage(config)
    read = load_questions(config.questions, config.references)
    questions = answerable(stage, read, TURNS * config.max_new_tokens, messages=whole_talk)
    prompts = load_judge_prompts(config.judge_prompts, config.mode)
    kept = kept_work(stage, config)
    with launched_work(stage, kept) as accelerator:
        drawn = stage.folder / kept.name
        ended: list[bool] = []
        answers = {
            name: _answers(name, questions, config, accelerator, drawn / f"model{i}", ended)
            for i, name in enumerate(config.models)
        }
        asked = requests(config, questions, prompts, answers)
        params = SamplingParams(temperature=0.0, max_new_tokens=config.judge_max_new_tokens)
        said: dict[str, dict[Case, str]] = {}
        for number, judge in enumerate(config.judges):
            to = (judge, f"judges.{number}", params, accelerator, drawn / f"judge{number}")
            said[judge.model] = dict(zip(asked, judgements(*to, list(asked.values())), strict=True))
        rows = judged_rows(config, questions, answers, said)
        record_judgements(stage, config, questions, answers, rows)
        stage.closing.suspect(suspicious_ends(ended, "max_new_tokens"))
        for name in said:
            unreadable = sum(row["judges"][name]["figure"] is None for row in rows)
            stage.closing.suspect(suspicious_judge(name, {"pairs": len(rows), "unreadable": unreadable}))


def kept_work(stage: Stage, config: MTBenchConfig) -> Kept:
    """Drawn answers and judgements that outlive a kill."""
    names = ("mode", "baseline", "max_new_tokens", "judge_max_new_tokens", "too_long", "seed")
    values = {name: getattr(config, name) for name in names}
    values |= {"judges": [judge.model for judge in config.judges], "models": [*config.models]}
    options, rounding = options_of(config, stage.inputs)
    held = {name: to_plain(value) for name, value in options.items() if name.startswith("models.")}
    return Kept(
        "drawn",
        "drawn answers and judgements",
        inputs=tuple(stage.inputs),
        values=values | held,
        rounding=rounding,
        pattern="**/*",
    )


def whole_talk(question: Question) -> Conversation:
    """All turns of a question, with answers that say next to nothing between them."""
    talk: Conversation = []
    for text in question.turns:
        talk += [{"role": "assistant", "content": "-"}] if talk else []
        talk.append({"role": "user", "content": text})
    return talk


def requests(
    config: MTBenchConfig, questions: Sequence[Question], prompts: Mapping[str, JudgePrompt], answers: Answers
) -> dict[Case, Conversation]:
    """What every judge is asked: each answer by itself, or with the baseline's in both orders."""
    asked: dict[Case, Conversation] = {}
    for name, q, turn in _cases(config, len(questions)):
        own = answers[name][q]
        if config.mode == "single":
            asked[name, q, turn, True] = single_request(prompts, questions[q], own, turn)
            continue
        other = answers[str(config.baseline)][q]
        for first, pair in ((True, (own, other)), (False, (other, own))):
            asked[name, q, turn, first] = pairwise_request(prompts, questions[q], *pair, turn)
    return asked


def judged_rows(
    config: MTBenchConfig, questions: Sequence[Question], answers: Answers, said: Mapping[str, Mapping[Case, str]]
) -> list[dict[str, Any]]:
    """A row an answer: its question, what each judge said of it, and the figures that this comes to.

    said: judge -> its text for each case.
    """
    rows = []
    for name, q, turn in _cases(config, len(questions)):
        row = {"model": name, **asdict(questions[q]), "turn": turn + 1, "answer": answers[name][q][turn]}
        figures: list[float | None] = []
        by_judge = {}
        for judge, cases in said.items():
            if config.mode == "single":
                texts = [cases[name, q, turn, True]]
                figure = rating(texts[0])
            else:
                texts = [cases[name, q, turn, first] for first in (True, False)]
                figure = agreed(*map(verdict, texts))
            figures.append(figure)
            by_judge[judge] = {"figure": figure, "judgements": texts}
        together = panel_rating if config.mode == "single" else majority
        rows.append(row | {"figure": together(figures), "judges": by_judge})
    return rows


@on_main_process
def record_judgements(
    stage: Stage,
    config: MTBenchConfig,
    questions: Sequence[Question],
    answers: Answers,
    rows: Sequence[dict[str, Any]],
) -> None:
    """Write answers, judgements, figures and the page, and show the table."""
    figures, agreement = mt_bench_figures(rows), judge_agreement(rows, config.mode)
    spoken = [
        {"model": name, "question_id": question.id, "turns": turns}
        for name in answers
        for question, turns in zip(questions, answers[name], strict=True)
    ]
    stage.write_rows("answers.jsonl", spoken)
    stage.write_rows("judgements.jsonl", rows)
    content = {"mode": config.mode, "baseline": config.baseline, "models": figures, "judges": agreement}
    stage.write_json("mt_bench.json", content, shown=as_markdown(mt_bench_table(figures, config.mode)))
    page, title = stage.folder / "index.html", config.output.name
    build_mt_bench_page(figures, agreement, page, title, config.mode, config.baseline)
    stage.closing.rows(len(rows))


def _cases(config: MTBenchConfig, questions: int) -> Iterator[tuple[str, int, int]]:
    """(model, question, turn) of all that is judged."""
    for name in config.models:
        if config.mode == "pairwise" and name == config.baseline:
            continue
        for q in range(questions):
            yield from ((name, q, turn) for turn in range(TURNS))


def _answers(
    name: str,
    questions: Sequence[Question],
    config: MTBenchConfig,
    accelerator: Any,
    shards: Path,
    ended: list[bool],
) -> list[list[str]]:
    """A model's two answers to each question: all first turns, then all second ones, at the category's temperature.

    `ended` gets of each answer whether it came to its end.
    """
    sampler = open_sampler(config.models[name], accelerator.device, too_long=config.too_long, field=f"models.{name}")
    talks: list[Conversation] = [[] for _ in questions]
    for turn in range(TURNS):
        for temperature in sorted({TEMPERATURES.get(question.category, 0.0) for question in questions}):
            chosen = [i for i, q in enumerate(questions) if TEMPERATURES.get(q.category, 0.0) == temperature]
            for i in chosen:
                talks[i].append({"role": "user", "content": questions[i].turns[turn]})
            params = SamplingParams(temperature=temperature, max_new_tokens=config.max_new_tokens, seed=config.seed)
            drawn = sample_distributed(
                sampler,
                [talks[i] for i in chosen],
                1,
                params,
                accelerator,
                keys=[TURNS * i + turn for i in chosen],
                shards=shards / f"turn{turn + 1}_{temperature:g}",
            )
            for i, (sample,) in zip(chosen, drawn, strict=True):
                talks[i].append({"role": "assistant", "content": sample.text})
                ended.append(sample.finished)
    return [[message["content"] for message in talk if message["role"] == "assistant"] for talk in talks]


if __name__ == "__main__":
    run_recipe(main, MTBenchConfig)
