"""The four tasks of the first Open LLM Leaderboard, run by EleutherAI's lm-evaluation-harness.

The QLoRA report, section 4.1: ARC-Challenge with 25 examples before each question (acc_norm), HellaSwag with 10
(acc_norm), TruthfulQA with none (mc2), MMLU with 5 (accuracy, the mean over its subjects, each of equal weight; the
harness's own `mmlu` weights by questions), and the mean of the four. Prompts, choices and metrics are the harness's; a
local file only takes the place of the hub's data. Light: the harness is imported when a task runs.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows
from rlhf.models.checkpoint.folder import is_adapter_checkpoint, require_policy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf.sampling.source import PolicySource


@dataclass(frozen=True)
class Task:
    """title: of its column; shots: examples before each question; name, folder: the harness's task and where it is."""

    title: str
    shots: int
    metric: str
    name: str
    folder: str


TASKS = {
    "arc": Task("ARC", 25, "acc_norm", "arc_challenge", "arc"),
    "hellaswag": Task("HellaSwag", 10, "acc_norm", "hellaswag", "hellaswag"),
    "mmlu": Task("MMLU", 5, "acc", "mmlu", "mmlu/default"),
    "truthfulqa": Task("TruthfulQA", 0, "acc", "truthfulqa_mc2", "truthfulqa"),
}


@dataclass(frozen=True)
class TaskScore:
    """score and its standard error, 0 to 1; questions asked; by_subject: accuracies, of MMLU alone."""

    score: float
    standard_error: float | None
    questions: int
    by_subject: Mapping[str, float]


def load_as_saved(source: PolicySource, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A policy's model and tokenizer with the vocabulary they were saved with; an adapter on its base, not merged.

    `load_weights` gives a model without a pad token one, and it would take part in every softmax.
    """
    from transformers import AutoTokenizer

    from rlhf.models.checkpoint.pretrained import from_pretrained
    from rlhf.models.policy import load_base, load_tokenizer
    from rlhf.sampling.opening import load_weights
    from rlhf.training.accelerator import frozen_dtype

    if source.adapter is not None or is_adapter_checkpoint(source.folder):
        return load_weights(source, device), load_tokenizer(source.folder)
    dtype = source.dtype or frozen_dtype(device)
    model = load_base(require_policy(source.folder), source.quantization, dtype).eval()
    return model if model.device == device else model.to(device), from_pretrained(AutoTokenizer, source.folder)


def write_local_task(task: str, source: Path, folder: Path) -> list[str]:
    """Write the harness's task over a local file into `folder`; the names of what to run.

    The examples before a question come from the same file, that question left out, but for MMLU.

    Args:
        task: a key of TASKS.
        source: ARC: JSONL as published, or as on the hub. HellaSwag: JSONL. TruthfulQA: `mc_task.json`, or JSONL as on
            the hub. MMLU: a folder of `<subject>_dev.csv` (the examples) and `<subject>_test.csv`, with a header or
            without, answers A to D or 0 to 3; or of the former alone, which are then the questions too: each once,
            behind the others of its subject, four where none of the five stands there twice.

    Raises:
        InputError: file and line that is not of that form; a file that is missing, or has too few rows for
            the examples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if task == "mmlu":
        return _write_mmlu(source, folder)
    read = {"arc": _arc_row, "hellaswag": _hellaswag_row, "truthfulqa": _truthfulqa_row}[task]
    file = folder / f"{task}.jsonl"
    rows = [_checked(read, row, f"{source}:{line}", task) for line, row in read_rows(source)]
    name, shots = TASKS[task].name, TASKS[task].shots
    different = len({json.dumps(row) for row in rows})
    if different <= shots:
        raise InputError(
            f"{source}: has too few rows: {different} different ones, and {TASKS[task].title} asks each behind {shots} "
            "others; name a longer file"
        )
    write_rows(file, rows)
    split = "validation" if task == "truthfulqa" else "test"
    splits = {"training_split": None, "validation_split": None, "test_split": None, f"{split}_split": split}
    _write_task(folder, f"{TASKS[task].folder}/{name}.yaml", f"local_{name}", {split: file}, shots, splits)
    return [f"local_{name}"]


def _checked(read: Any, row: dict[str, Any], where: str, task: str) -> dict[str, Any]:
    try:
        return read(row)  # type: ignore[no-any-return]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{where}: is no row of {TASKS[task].title}; name the file as it is published") from None


def _arc_row(row: dict[str, Any]) -> dict[str, Any]:
    question = row["question"]
    if isinstance(question, str):
        choices = row["choices"]
    else:
        choices = {key: [choice[key] for choice in question["choices"]] for key in ("text", "label")}
        question = question["stem"]
    choices["label"].index(row["answerKey"])
    return {"question": question, "choices": choices, "answerKey": row["answerKey"]}


def _hellaswag_row(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in ("activity_label", "ctx_a", "ctx_b", "endings")}
    return kept | {"label": str(int(row["label"]))}


def _truthfulqa_row(row: dict[str, Any]) -> dict[str, Any]:
    targets = {key: row[key] for key in ("mc1_targets", "mc2_targets")}
    if "choices" not in targets["mc2_targets"]:
        targets = {key: {"choices": list(t), "labels": [int(v) for v in t.values()]} for key, t in targets.items()}
    return {"question": row["question"], **targets}


def _write_mmlu(source: Path, folder: Path) -> list[str]:
    questions = "dev" if _has_examples_alone(source) else "test"
    subjects = sorted(file.name.removesuffix(f"_{questions}.csv") for file in source.glob(f"*_{questions}.csv"))
    if not subjects:
        raise InputError(f"mmlu: {source} has no <subject>_test.csv; name the folder that holds these and *_dev.csv")
    names = []
    for subject in subjects:
        files = {}
        for split, of in (("dev", "dev"), ("test", questions)):
            files[split] = folder / f"mmlu_{subject}_{split}.jsonl"
            rows = _mmlu_rows(source / f"{subject}_{of}.csv")
            if questions == "dev":
                rows = [row for number, row in enumerate(rows) if row not in rows[:number]]
            elif split == "dev" and len(rows) < TASKS["mmlu"].shots:
                raise InputError(
                    f"{source / f'{subject}_dev.csv'}: has too few rows: {len(rows)}, and MMLU asks each question "
                    f"behind {TASKS['mmlu'].shots} of them; take the file as it is published"
                )
            write_rows(files[split], rows)
        base, name = f"{TASKS['mmlu'].folder}/mmlu_{subject}.yaml", f"local_mmlu_{subject}"
        if not (_harness_tasks() / base).is_file():
            raise InputError(f"mmlu: {source} has the subject {subject}, which MMLU has not; take its files away")
        splits, shots = {}, TASKS["mmlu"].shots
        if questions == "dev":  # the harness leaves out the question itself
            splits, shots = {"fewshot_split": "test"}, min(shots, len(rows)) - 1
        _write_task(folder, base, name, files, shots, splits)
        names.append(name)
    return names


def _has_examples_alone(source: Path) -> bool:
    return not any(source.glob("*_test.csv")) and any(source.glob("*_dev.csv"))


def _mmlu_rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise InputError(f"mmlu: there is no {file}; MMLU needs a dev and a test file for each subject")
    rows = []
    with file.open(encoding="utf-8", newline="") as stream:
        for number, cells in enumerate(csv.reader(stream), start=1):
            if number == 1 and cells[-1:] == ["answer"]:
                continue
            answer = {"A": 0, "B": 1, "C": 2, "D": 3, "0": 0, "1": 1, "2": 2, "3": 3}.get(cells[-1] if cells else "")
            if len(cells) != 6 or answer is None:
                raise InputError(f"{file}:{number}: must be a question, four choices and the answer A to D or 0 to 3")
            rows.append({"question": cells[0], "choices": cells[1:5], "answer": answer})
    if not rows:
        raise InputError(f"{file}: is empty; there are no rows in it")
    return rows


def _harness_tasks() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _write_task(
    folder: Path, base: str, name: str, files: Mapping[str, Path], shots: int, splits: Mapping[str, Any]
) -> None:
    import yaml

    content = {
        "include": str(_harness_tasks() / base),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "num_fewshot": shots,
        "dataset_kwargs": {"data_files": {split: str(file.resolve()) for split, file in files.items()}},
        **splits,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def run_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    local: Sequence[str] = (),
    tasks_folder: Path | None = None,
    limit: int | None = None,
    rows: int = 8,
) -> TaskScore:
    """Ask a model all questions of a task; what `lm_eval run` gives with the same tasks, shots and limit.

    Args:
        model: causal LM on its device, also with an adapter or in 4 bit. No chat template is put on.
        task: a key of TASKS.
        local: names from `write_local_task`; none: the hub's data.
        tasks_folder: where those were written.
        limit: the first questions only, this many (of each subject); None: all.
        rows: choices at once.

    Raises:
        InputError: the hub cannot be reached.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from rlhf.evaluation.benchmarks.choices import harness_model

    manager = TaskManager(include_path=str(tasks_folder), include_defaults=False) if local else TaskManager()
    try:
        results = simple_evaluate(
            harness_model(model, tokenizer, rows),
            tasks=list(local) or [TASKS[task].name],
            num_fewshot=None if local else TASKS[task].shots,  # a local task's own
            task_manager=manager,
            limit=limit,
            bootstrap_iters=2,  # the standard error of a mean is a formula; 0 would leave it out
        )
    except ConnectionError as error:
        raise InputError(
            f"tasks: {task}'s data cannot be fetched ({error}); name a file of them with --local"
        ) from error
    # a group's own line and those of its parts that are groups themselves have no questions
    lines = {name: line for name, line in results["results"].items() if name in results["n-samples"]}
    metric = f"{TASKS[task].metric},none"
    scores = {name: float(line[metric]) for name, line in lines.items()}
    errors = [line.get(f"{TASKS[task].metric}_stderr,none") for line in lines.values()]
    known = [float(error) for error in errors if isinstance(error, (int, float))]
    combined = math.sqrt(sum(e * e for e in known)) / len(errors) if len(known) == len(errors) else None
    subjects = {name.removeprefix("local_").removeprefix("mmlu_"): score for name, score in scores.items()}
    return TaskScore(
        score=sum(scores.values()) / len(scores),
        standard_error=combined,
        questions=sum(results["n-samples"][name]["effective"] for name in lines),
        by_subject=subjects if task == "mmlu" else {},
    )
