from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.leaderboard import (
    TASKS,
    TaskScore,
    load_as_saved,
    run_task,
    write_local_task,
)
from rlhf.jsonl import write_rows
from rlhf.report.drawing.tables import as_markdown
from rlhf.report.pages.leaderboard import leaderboard_table
from rlhf.sampling.source import PolicySource


def local_mmlu(source: Path, folder: Path, subjects: Sequence[str] = ("anatomy", "virology")) -> Path:
    """Published dev files as the examples, those of another subject as the questions."""
    folder.mkdir()
    for subject, other in zip(subjects, reversed(subjects), strict=True):
        for split, name in (("dev", subject), ("test", other)):
            (folder / f"{subject}_{split}.csv").write_bytes((source / f"{name}_dev.csv").read_bytes())
    return folder


@pytest.mark.parametrize("task", ["arc", "mmlu", "truthfulqa"])
def test_scores_are_those_of_the_harness_by_itself(shared_data: Path, tmp_path: Path, task: str) -> None:
    """But for rounding: lm-eval loads the model and reads the same local task without us, a choice at a time."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    sources = {
        "arc": shared_data / "arc/ARC-Challenge-Dev.jsonl",
        "mmlu": local_mmlu(shared_data / "mmlu_dev", tmp_path / "mmlu"),
        "truthfulqa": shared_data / "truthfulqa/mc_task_400.json",
    }
    names = write_local_task(task, sources[task], tmp_path / "tasks")
    model, tokenizer = load_as_saved(PolicySource(checkpoint=shared_data / "stories260K"), torch.device("cpu"))
    ours = run_task(model, tokenizer, task, local=names, tasks_folder=tmp_path / "tasks", limit=2)
    by_hand = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={shared_data / 'stories260K'},dtype=float32",
        tasks=names,
        num_fewshot={"arc": 25, "mmlu": 5, "truthfulqa": 0}[task],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=8,
        limit=2,
    )["results"]
    metric = {"arc": "acc_norm,none", "mmlu": "acc,none", "truthfulqa": "acc,none"}[task]
    assert ours.score == pytest.approx(sum(by_hand[name][metric] for name in names) / len(names), rel=1e-5)
    assert ours.questions == 2 * len(names)
    error = {"arc": "acc_norm_stderr,none"}.get(task, "acc_stderr,none")
    if task != "mmlu":
        assert ours.standard_error == pytest.approx(by_hand[names[0]][error], rel=1e-5)
    else:
        assert ours.by_subject == {name[len("local_mmlu_") :]: by_hand[name][metric] for name in names}


def test_a_pad_token_that_the_model_lacks_is_not_given_one(shared_data: Path) -> None:
    model, tokenizer = load_as_saved(PolicySource(checkpoint=shared_data / "stories260K"), torch.device("cpu"))
    assert model.config.vocab_size == model.get_output_embeddings().weight.shape[0] == 512
    assert tokenizer.pad_token_id is None


def test_arc_as_published_and_as_on_the_hub_are_the_same_task(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    published = {
        "question": {"stem": "Q?", "choices": [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]},
        "answerKey": "2",
    }
    hub = {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    written = []
    others = [{**hub, "question": f"Q{i}?"} for i in range(25)]
    for name, row in (("published", published), ("hub", hub)):
        write_rows(tmp_path / f"{name}.jsonl", [row, *others])
        write_local_task("arc", tmp_path / f"{name}.jsonl", tmp_path / name)
        written.append(json.loads((tmp_path / name / "arc.jsonl").read_text().splitlines()[0]))
    assert written == [hub, hub]


def test_hellaswag_reads_as_published(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    row = {"activity_label": "Cooking", "ctx_a": "A cook", "ctx_b": "he", "endings": ["a", "b", "c", "d"], "label": 2}
    published = row | {"ind": 1, "split": "val"}
    write_rows(tmp_path / "h.jsonl", [published, *(published | {"ctx_a": f"A cook {i}"} for i in range(10))])
    assert write_local_task("hellaswag", tmp_path / "h.jsonl", tmp_path) == ["local_hellaswag"]
    assert json.loads((tmp_path / "hellaswag.jsonl").read_text().splitlines()[0]) == row | {"label": "2"}


def test_mmlu_with_a_header_and_numbers_and_without_and_letters(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "anatomy_dev.csv").write_text("question,choice0,choice1,choice2,choice3,answer\n" + "Q,w,x,y,z,3\n" * 5)
    (tmp_path / "anatomy_test.csv").write_text("Q,w,x,y,z,D\n")
    assert write_local_task("mmlu", tmp_path, tmp_path / "tasks") == ["local_mmlu_anatomy"]
    for split, count in (("dev", 5), ("test", 1)):
        rows = (tmp_path / f"tasks/mmlu_anatomy_{split}.jsonl").read_text().splitlines()
        assert [json.loads(row) for row in rows] == [
            {"question": "Q", "choices": ["w", "x", "y", "z"], "answer": 3}
        ] * count


@pytest.mark.parametrize(
    ("task", "content", "complaint"),
    [
        ("arc", '{"question": {"stem": "Q", "choices": []}, "answerKey": "A"}', "bad.jsonl:1: is no row of ARC"),
        (
            "arc",
            '{"question": "Q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "B"}',
            "bad.jsonl:1: is no row of ARC",
        ),
        ("truthfulqa", '{"question": "Q"}', "bad.jsonl:1: is no row of TruthfulQA"),
        ("hellaswag", '{"ctx": "Q"}', "bad.jsonl:1: is no row of HellaSwag"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, task: str, content: str, complaint: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(InputError, match=complaint):
        write_local_task(task, tmp_path / "bad.jsonl", tmp_path / "tasks")


def test_mmlu_s_examples_alone_are_asked_behind_the_others(tmp_path: Path, tiny_policy_path: Path) -> None:
    """Four of five; of a subject where one stands twice, as in MMLU's college physics, three of four."""
    pytest.importorskip("lm_eval")
    (tmp_path / "anatomy_dev.csv").write_text("".join(f"Q{i},a,b,c,d,{i % 4}\n" for i in range(5)))
    (tmp_path / "college_physics_dev.csv").write_text("".join(f"Q{i},a,b,c,d,{i % 4}\n" for i in (0, 1, 2, 1, 3)))
    names = write_local_task("mmlu", tmp_path, tmp_path / "tasks")
    assert names == ["local_mmlu_anatomy", "local_mmlu_college_physics"]
    for name, shots in zip(names, (4, 3), strict=True):
        task = yaml.safe_load((tmp_path / "tasks" / f"{name}.yaml").read_text())
        assert task["fewshot_split"] == "test", "from which the harness takes the question itself out"
        assert task["num_fewshot"] == shots
        asked = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        assert [json.loads(row)["question"] for row in asked] == [f"Q{i}" for i in range(shots + 1)]
    model, tokenizer = load_as_saved(PolicySource(checkpoint=tiny_policy_path), torch.device("cpu"))
    score = run_task(model, tokenizer, "mmlu", local=names, tasks_folder=tmp_path / "tasks")
    assert score.questions == 9 and list(score.by_subject) == ["anatomy", "college_physics"]
    (tmp_path / "college_physics_dev.csv").unlink()
    (tmp_path / "anatomy_test.csv").write_text("Q,a,b,c,d,A\n")
    write_local_task("mmlu", tmp_path, tmp_path / "tested")
    assert yaml.safe_load((tmp_path / "tested" / "local_mmlu_anatomy.yaml").read_text())["num_fewshot"] == 5


def test_bad_mmlu_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no <subject>_test\.csv"):
        write_local_task("mmlu", tmp_path, tmp_path / "tasks")
    (tmp_path / "anatomy_test.csv").write_text("Q,w,x,y,z,E\n")
    with pytest.raises(InputError, match=r"there is no .*anatomy_dev.csv"):
        write_local_task("mmlu", tmp_path, tmp_path / "tasks")
    (tmp_path / "anatomy_dev.csv").write_text("Q,w,x,y,z,A\n" * 5)
    with pytest.raises(InputError, match=r"anatomy_test.csv:1: must be a question"):
        write_local_task("mmlu", tmp_path, tmp_path / "tasks")


def test_too_few_rows_for_the_examples_are_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    """Rows that stand there twice are one: the harness takes every copy of the question out of its examples."""
    pytest.importorskip("lm_eval")
    row = {"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    rows = [{**row, "question": f"Q{i % 25}?"} for i in range(30)]
    write_rows(tmp_path / "arc.jsonl", rows)
    with pytest.raises(
        InputError, match=r"arc\.jsonl: has too few rows: 25 different ones, and ARC asks each behind 25"
    ):
        write_local_task("arc", tmp_path / "arc.jsonl", tmp_path / "tasks")
    (tmp_path / "anatomy_test.csv").write_text("Q,a,b,c,d,A\n")
    (tmp_path / "anatomy_dev.csv").write_text("Q,a,b,c,d,A\n" * 4)
    with pytest.raises(
        InputError, match=r"anatomy_dev\.csv: has too few rows: 4, and MMLU asks each question behind 5"
    ):
        write_local_task("mmlu", tmp_path, tmp_path / "tasks")


def test_one_question_alone_is_asked_without_examples(tmp_path: Path, tiny_policy_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "anatomy_dev.csv").write_text("Q,a,b,c,d,A\n")
    names = write_local_task("mmlu", tmp_path, tmp_path / "tasks")
    model, tokenizer = load_as_saved(PolicySource(checkpoint=tiny_policy_path), torch.device("cpu"))
    assert run_task(model, tokenizer, "mmlu", local=names, tasks_folder=tmp_path / "tasks", rows=1).questions == 1


def test_the_table_has_the_mean_first() -> None:
    """Llama-2-7b of the report's table 1: 53.07, 77.74, 43.80, 38.98 and their mean 53.40."""
    values = {"arc": 0.5307, "hellaswag": 0.7774, "mmlu": 0.4380, "truthfulqa": 0.3898}
    table = leaderboard_table({"llama|2": {task: TaskScore(values[task], 0.01, 100, {}) for task in TASKS}})
    assert as_markdown(table).splitlines() == [
        "| Model | Average | ARC | HellaSwag | MMLU | TruthfulQA |",
        "| --- | --- | --- | --- | --- | --- |",
        "| llama\\|2 | 53.40 (± 0.98) | 53.07 (± 1.96) | 77.74 (± 1.96) | 43.80 (± 1.96) | 38.98 (± 1.96) |",
    ]
