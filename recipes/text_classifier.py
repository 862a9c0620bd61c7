"""A judge of texts of your own: a small classifier of labelled texts, for recipes/evaluation/safety_benchmarks.py.

Stands in for the classifiers that the paper takes from elsewhere (section 4.1, appendix A.4.7) where none is at hand.
How far it agrees with the people who labelled the texts is measured on texts that it was not trained on.

    python recipes/text_classifier.py --config recipes/configs/benchmarks/text_classifier.yaml

Writes into the output folder: checkpoint/ (what transformers calls a sequence classifier), agreement.json,
heldout.jsonl (each held-out text, its label, and the classifier's), metrics.jsonl; prints the confusion table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.splitting import part_of
from rlhf.data.suspicion import suspicious_agreement
from rlhf.errors import InputError
from rlhf.evaluation.safety.refusals import agreement
from rlhf.finetuning.classifier import read_labelled_texts, save_classifier, train_classifier
from rlhf.intervals import wilson
from rlhf.models.checkpoint.fields import Checkpoint
from rlhf.models.checkpoint.folder import is_adapter_checkpoint
from rlhf.stage import Effect, KeepingConfig, Stage, on_main_process, open_stage
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import RESUME, States
from rlhf.training.loop import TrainingResult
from rlhf.training.work import close_training, training_work


@dataclass(frozen=True, kw_only=True)
class TextClassifierConfig(KeepingConfig):
    """A classifier of texts.

    Args:
        model: checkpoint folder to start from, a causal LM or an encoder; it gets a new head.
        data: label -> its texts, a file or hub name: rows with a `text`, or prompts or pairs, whose first user message
            is taken.
        heldout_share: share of the texts to measure and never train on.
        optimizer: schedule and sizes.
        checkpoint_every: steps between states from which a stage that was killed goes on.
        seed: of the held-out split, the new head and the rows' order.
    """

    model: Checkpoint
    data: dict[str, DataSource]
    heldout_share: float = 0.2
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(epochs=2))
    checkpoint_every: Annotated[int, Effect.NONE] = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.data) < 2:
            raise InputError(
                'data: needs the texts of two labels or more, e.g. {"toxic": "a.txt", "harmless": "b.txt"}'
            )
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every: must be at least 1, got {self.checkpoint_every}")
        if not 0 < self.heldout_share < 1:
            raise InputError(f"heldout_share: must lie between 0 and 1, got {self.heldout_share}")


def main(config: TextClassifierConfig) -> None:
    stage = open_stage(config)
    if is_adapter_checkpoint(config.model):
        raise InputError(f"model: {config.model} is an adapter alone; merge it first with recipes/merge_adapter.py")

    shares = {"train": 1 - config.heldout_share, "heldout": config.heldout_share}
    parts: dict[str, dict[str, str]] = {name: {} for name in shares}
    for text, label in read_labelled_texts(config.data).items():
        parts[part_of(text, shares, config.seed)][text] = label
    if not parts["heldout"]:
        raise InputError("heldout_share: no text is held out; raise it or give more texts")
    if unlearnt := sorted({*parts["heldout"].values()} - {*parts["train"].values()}):
        raise InputError(
            f"data.{unlearnt[0]}: all of its texts are held out, none is left to train on; give more of them, or lower "
            f"heldout_share, {config.heldout_share:g}"
        )
    with training_work(stage) as accelerator:
        states = States(stage.folder / RESUME, config.checkpoint_every)
        model, tokenizer, result = train_classifier(
            config.model, parts["train"], config.optimizer, accelerator, stage.log, config.seed, states
        )
        save_classifier(model, tokenizer, stage.folder / "checkpoint", accelerator)
        record_agreement(stage, result, parts["heldout"])


@on_main_process
def record_agreement(stage: Stage, result: TrainingResult, heldout: Mapping[str, str]) -> None:
    """Judge the held-out texts (text -> label) with what was saved; write and show how far people agree with it.

    The closing block gets that too, and how the training went.
    """
    from rlhf.models.text_judges import TextClassifier

    texts, labels = list(heldout), list(heldout.values())
    given = TextClassifier(str(stage.folder / "checkpoint")).labels_of(texts)
    figures = agreement_figures(labels, given)
    stage.write_json("agreement.json", figures, shown=markdown(figures))
    judged = zip(texts, labels, given, strict=True)
    stage.write_rows("heldout.jsonl", ({"text": t, "label": a, "judged": b} for t, a, b in judged))
    close_training(stage, result, figures={"heldout": figures["n"], "agreement": figures["agreement"]})
    stage.closing.suspect(suspicious_agreement(figures["agreement"], figures["ci"][1], figures["most_frequent"]))


def agreement_figures(labels: list[str], given: list[str]) -> dict[str, Any]:
    """Confusion (a row a label of people's), agreement with Wilson's interval, Cohen's kappa, and the agreement of
    always saying the most frequent label."""
    names = sorted({*labels, *given})
    pairs = list(zip(labels, given, strict=True))
    table = [[pairs.count((row, column)) for column in names] for row in names]
    found = agreement(table)
    found["ci"] = wilson(found["agreement"], found["n"]).ci
    return {"labels": names, "confusion": table, **found, "most_frequent": max(map(sum, table)) / len(pairs)}


def markdown(figures: dict[str, Any]) -> str:
    """One sentence and the confusion table."""
    shares = [f"{100 * share:.1f}" for share in (figures["agreement"], *figures["ci"], figures["most_frequent"])]
    kappa = "–" if figures["kappa"] is None else f"{figures['kappa']:.2f}"
    labels = figures["labels"]
    rows = [["people ↓, classifier →", *labels], ["---"] * (len(labels) + 1)]
    rows += [[label, *map(str, own)] for label, own in zip(labels, figures["confusion"], strict=True)]
    return (
        f"It agrees with people on {shares[0]} % ({shares[1]} to {shares[2]}) of {figures['n']} held-out texts, kappa "
        f"{kappa}; always saying the most frequent label: {shares[3]} %\n\n"
        + "\n".join(f"| {' | '.join(row)} |" for row in rows)
    )


if __name__ == "__main__":
    run_recipe(main, TextClassifierConfig)
