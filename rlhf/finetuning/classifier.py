"""Train a text classifier on labelled texts, to judge generated ones: what `TextClassifier` loads.

Light: torch when called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.loading import load_preferences, load_prompts, load_texts, source_rows
from rlhf.errors import InputError, notice
from rlhf.metrics import MetricsLog
from rlhf.models.checkpoint.context import Context
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import States

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf.training.loop import TrainingResult
    from rlhf.training.step import Batch

LONGEST = 512


def read_labelled_texts(sources: Mapping[str, str]) -> dict[str, str]:
    """text -> label, each text once.

    Args:
        sources: label -> file or hub name: rows with a `text` (of a .txt file each line), or prompts or pairs, whose
            first user message is the text. Bad rows are skipped and counted on stderr; texts that stand in the sources
            of two labels are left out.
    """
    found: dict[str, str] = {}
    both: set[str] = set()
    for label, source in sources.items():
        _, first = next(iter(source_rows(source)))
        if "text" in first:
            texts = load_texts(source, on_bad_row="skip")
        else:
            load: Any = load_preferences if "chosen" in first else load_prompts
            rows = load(source, on_bad_row="skip")
            texts = [next(m["content"] for m in row.messages if m["role"] == "user") for row in rows]
        for text in texts:
            if found.setdefault(text, label) != label:
                both.add(text)
    return {text: label for text, label in found.items() if text not in both}


def train_classifier(
    path: Path,
    labelled: Mapping[str, str],
    config: OptimizerConfig,
    accelerator: Accelerator,
    log: MetricsLog,
    seed: int,
    states: States | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, TrainingResult]:
    """A sequence classifier of the labels in `labelled` (text -> label), fine-tuned by cross-entropy.

    Args:
        path: checkpoint folder to start from, a causal LM or an encoder; its head is new.
        seed: of the head and of the rows' order.
        states: where the training goes on from after a kill; None: it keeps none.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForSequenceClassification

    from rlhf.models.batching import pad_rows
    from rlhf.models.policy import add_pad_embedding, load_base, load_tokenizer
    from rlhf.models.text_judges import was_cut
    from rlhf.training.loop import Task, train

    names = sorted(set(labelled.values()))
    if len(names) < 2:
        raise InputError(f"data: needs texts of two labels or more to train on, has those of {', '.join(names)}")
    tokenizer = load_tokenizer(path)
    torch.manual_seed(seed)
    labels = {name: number for number, name in enumerate(names)}
    given = {"label2id": labels, "id2label": dict(enumerate(names))}
    model = load_base(path, None, "float32", AutoModelForSequenceClassification, **given)
    add_pad_embedding(model, tokenizer)
    longest = Context.of(model.config).limit(LONGEST)
    tokenized = [tokenizer(text, truncation=True, max_length=longest, split_special_tokens=True) for text in labelled]
    if cut := sum(map(was_cut, tokenized)):
        notice(f"data: {cut} of {len(labelled)} texts are cut to the {longest} tokens that the model reads")
    rows = [(row["input_ids"], labels[label]) for row, label in zip(tokenized, labelled.values(), strict=True)]

    def collate(some: Sequence[tuple[list[int], int]]) -> Batch:
        ids, mask = pad_rows([ids for ids, _ in some], tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in some])}

    def loss(module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        right = (logits.argmax(-1) == batch["labels"]).sum()
        return cross_entropy(logits, batch["labels"], reduction="sum"), {"accuracy": right}

    task = Task(collate=collate, loss=loss, weight=lambda row: 1.0, length=lambda row: len(row[0]))
    result = train(
        model,
        rows,
        task,
        config,
        accelerator,
        log,
        seed=seed,
        name="classifier",
        states=states,
        shown=lambda row: tokenizer.decode(row[0]),
    )
    return model.eval(), tokenizer, result


def save_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, accelerator: Accelerator
) -> None:
    """Write a classifier and read it back (`rlhf.models.checkpoint.saving`). Every process calls it, one writes."""
    from transformers import AutoModelForSequenceClassification

    from rlhf.models.checkpoint.saving import is_partitioned_model, probe_scores, whole_state_dict, write_whole

    state = whole_state_dict(model, keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
        want = None if is_partitioned_model(model) else probe_scores(model)
        write_whole(model, state, folder, AutoModelForSequenceClassification, probe_scores, want)
    accelerator.wait_for_everyone()
