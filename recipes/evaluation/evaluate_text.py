"""Answers against reference answers: ROUGE, BERTScore, readability (QLoRA report, sections 4.1 and 4.2).

Each model answers held-out rows of each data set, whose last message is the reference. ROUGE-1, -2, -L and -Lsum count
shared words, BERTScore compares their meaning, Flesch reading ease and Flesch-Kincaid grade say how hard an answer is
to read. Every figure is a distribution over the rows, not just a mean.

    python recipes/evaluation/evaluate_text.py --config recipes/configs/embedded/evaluate_text.yaml

Writes into the output folder: answers.jsonl (a row an answer, with its figures), text_metrics.json (means, intervals,
quantiles) and index.html (tables and distributions); prints a table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.text_metrics import (
    bert_scores,
    distributions,
    readability,
    require_encoder,
    rouge,
)
from rlhf.imports import require_packages
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.drawing.tables import as_markdown
from rlhf.report.pages.text_metrics import build_text_page, text_tables
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.source import AnsweringPolicy, PolicySource
from rlhf.stage import Effect, Stage, StageConfig, on_main_process, open_stage
from rlhf.training.work import launched_work


@dataclass(frozen=True, kw_only=True)
class EvaluateTextConfig(RoomConfig, StageConfig):
    """Models on data sets with reference answers.

    Args:
        models: name -> policy (docs/policies.md).
        data: name -> conversations (file or hub name) that no model was trained on; each ends with the reference.
        rows: of each data set, drawn by the seed; of a smaller one all.
        bert_model: encoder for BERTScore, a folder or a hub name; null: no BERTScore.
        bert_layers: the encoder's layer whose states are compared.
        bert_rows: texts that the encoder reads at once.
        sampling: how answers are drawn; temperature 0 takes the likeliest token.
        seed: of the rows, and added to sampling.seed.
    """

    models: dict[str, AnsweringPolicy]
    data: dict[str, DataSource]
    rows: int = 100
    bert_model: str | None = None
    bert_layers: int | None = None
    bert_rows: Annotated[int, Effect.ROUNDING] = 32
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("models", "data"):
            if not getattr(self, name):
                raise InputError(f"{name}: must name at least one, e.g. --{name}.mine PATH")
        if "reference" in self.models:
            raise InputError("models: reference is the name of the reference answers' row; give the model another")
        for name in ("rows", "bert_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if (self.bert_model is None) != (self.bert_layers is None):
            raise InputError("bert_model, bert_layers: BERTScore needs both, or name neither")


def main(config: EvaluateTextConfig) -> None:
    stage = open_stage(config)
    require_packages("evaluate_text: ROUGE needs", "rouge_score")
    if config.bert_model is not None and config.bert_layers is not None:
        require_packages("bert_model: BERTScore needs", "bert_score")
        require_encoder(config.bert_model, config.bert_layers)
    drawn = [(name, row) for name, source in config.data.items() for row in _drawn(name, source, config)]
    asked = answerable(stage, drawn, config.sampling.max_new_tokens, messages=lambda row: row[1][:-1])

    with launched_work(stage) as accelerator:
        rows = [
            row for name, model in config.models.items() for row in _answers(name, model, asked, config, accelerator)
        ]
        record_texts(stage, config, rows, str(accelerator.device))


@on_main_process
def record_texts(stage: Stage, config: EvaluateTextConfig, rows: list[dict[str, Any]], device: str) -> None:
    """Measure the answers; write them, figures and page, and show the tables; `device`: of BERTScore's model."""
    figures = _figures(rows, config, device)
    tables = (f"**{name}**\n\n{as_markdown(table)}\n" for name, table in text_tables(figures))
    stage.write_rows("answers.jsonl", rows)
    stage.write_json("text_metrics.json", figures, shown="\n".join(tables))
    stage.closing.rows(len(rows))
    stage.closing.suspect(suspicious_ends(row["finished"] for row in rows))
    build_text_page(figures, rows, stage.folder / "index.html", config.output.name)


def _drawn(name: str, source: str, config: EvaluateTextConfig) -> list[Conversation]:
    conversations = load_conversations(source)
    if any(conversation[-1]["role"] != "assistant" for conversation in conversations):
        raise InputError(f"data.{name}: a row of {source} does not end with an assistant's answer, the reference")
    return random.Random(config.seed).sample(conversations, min(config.rows, len(conversations)))


def _answers(
    name: str,
    model: PolicySource,
    asked: Sequence[tuple[str, Conversation]],
    config: EvaluateTextConfig,
    accelerator: Any,
) -> list[dict[str, Any]]:
    """A model's answers to (data, conversation) of each: model, data, prompt, reference, answer, finished."""
    sampler = open_sampler(model, accelerator.device, too_long=config.too_long, field=f"models.{name}")
    params = config.sampling.seeded(config.seed)
    drawn = sample_distributed(sampler, [conversation[:-1] for _, conversation in asked], 1, params, accelerator)
    return [
        {
            "model": name,
            "data": source,
            "prompt": conversation[:-1],
            "reference": conversation[-1]["content"],
            "answer": sample.text,
            "finished": sample.finished,
        }
        for (source, conversation), (sample,) in zip(asked, drawn, strict=True)
    ]


def _figures(rows: list[dict[str, Any]], config: EvaluateTextConfig, device: str) -> dict[str, Any]:
    """data -> model -> figure -> its distribution, beside the references'; each row gets its figures (NaN: null)."""
    answers, references = [row["answer"] for row in rows], [row["reference"] for row in rows]
    columns = rouge(answers, references) | readability(answers)
    if config.bert_model is not None and config.bert_layers is not None:
        require_packages("bert_model: BERTScore needs", "bert_score")
        columns |= bert_scores(
            answers, references, config.bert_model, config.bert_layers, rows=config.bert_rows, device=device
        )
    for i, row in enumerate(rows):
        row["figures"] = {name: None if values[i] != values[i] else values[i] for name, values in columns.items()}
    figures: dict[str, Any] = {}
    for source in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == source]
        first = [row["reference"] for row in own if row["model"] == own[0]["model"]]
        models = {model: _columns([row for row in own if row["model"] == model]) for model in config.models}
        figures[source] = {model: distributions(some) for model, some in models.items()}
        figures[source]["reference"] = distributions(readability(first))
    return figures


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    return {name: [row["figures"][name] for row in rows] for name in rows[0]["figures"]}


if __name__ == "__main__":
    run_recipe(main, EvaluateTextConfig)
