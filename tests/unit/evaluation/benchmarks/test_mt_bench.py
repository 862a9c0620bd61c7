from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.mt_bench import (
    Question,
    agreed,
    load_judge_prompts,
    load_questions,
    mean_figure,
    pairwise_request,
    rating,
    single_request,
    verdict,
)
from rlhf.report.pages.mt_bench import mt_bench_figures


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("Rating: [[8.5]] and later [[2]]", 8.5),
        ("Rating: [9]", 9.0),
        ("The answer reads list[0] and cites [1]. Rating: [[7]]", 7.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("seven of ten", None),
        ("Source [1] is cited. Rating: [[8]]", 8.0),
    ],
)
def test_rating(text: str, value: float | None) -> None:
    assert rating(text) == value


def test_a_win_counts_only_where_both_orders_agree() -> None:
    assert [verdict(f"because … [[{x}]]") for x in "ABC"] == ["A", "B", "tie"]
    assert verdict("A is better") is None
    assert agreed("A", "B") == 1.0  # A wins, and wins again as B
    assert agreed("B", "A") == 0.0
    assert agreed("A", "A") == 0.5  # the first one always wins: the judge likes the place
    assert agreed("tie", "B") == agreed("tie", "tie") == 0.5
    assert agreed(None, "A") is None


def test_questions_references_and_prompts_as_published(shared_data: Path) -> None:
    folder = shared_data / "mtbench"
    questions = load_questions(folder / "question.jsonl", folder / "reference_gpt-4.jsonl")
    assert len(questions) == 80
    assert Counter(q.category for q in questions if q.references) == {"reasoning": 10, "math": 10, "coding": 10}
    single, pair = (load_judge_prompts(folder / "judge_prompts.jsonl", mode) for mode in ("single", "pairwise"))
    for question in (questions[0], questions[30]):
        for turn in (0, 1):
            shown = single_request(single, question, ["first {answer_2}", "second"], turn)
            both = pairwise_request(pair, question, ["a one", "a two"], ["b one", "b two"], turn)
            for talk in (shown, both):
                assert [m["role"] for m in talk] == ["system", "user"]
                text = talk[1]["content"]
                assert question.turns[turn] in text
                assert (question.references is not None) == ("Reference Answer" in text)
                if question.references:
                    assert question.references[turn] in text
            assert "first {answer_2}" in shown[1]["content"]  # braces of an answer are no fields
            assert ("second" in shown[1]["content"]) == (turn == 1)
            assert both[1]["content"].index("a one") < both[1]["content"].index("b one")
            assert ("b two" in both[1]["content"]) == (turn == 1)


def test_no_field_of_a_template_is_left_open(shared_data: Path) -> None:
    prompts = load_judge_prompts(shared_data / "mtbench/judge_prompts.jsonl", "single")
    question = Question(1, "math", ("Q1", "Q2"), ("R1", "R2"))
    for turn in (0, 1):
        assert "{" not in single_request(prompts, question, ["A1", "A2"], turn)[1]["content"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "category": "math", "turns": ["only one"]}))
    with pytest.raises(InputError, match=r"q\.jsonl:1: a question needs"):
        load_questions(tmp_path / "q.jsonl")
    twice = json.dumps({"question_id": 1, "category": "math", "turns": ["one", "two"]}) + "\n"
    (tmp_path / "q2.jsonl").write_text(2 * twice)
    with pytest.raises(InputError, match=r"q2\.jsonl:2: question_id 1 stands at another question too"):
        load_questions(tmp_path / "q2.jsonl")
    (tmp_path / "r.jsonl").write_text(json.dumps({"question_id": 1, "choices": []}))
    with pytest.raises(InputError, match=r"r\.jsonl:1: a reference needs"):
        load_questions(tmp_path / "q.jsonl", tmp_path / "r.jsonl")
    (tmp_path / "p.jsonl").write_text(json.dumps({"name": "single-v1", "system_prompt": "", "prompt_template": ""}))
    with pytest.raises(InputError, match="has no prompt single-v1-multi-turn"):
        load_judge_prompts(tmp_path / "p.jsonl", "single")


def test_figures_average_a_questions_turns_first() -> None:
    ratings = {1: (2.0, 4.0), 2: (8.0, 10.0), 3: (5.0, None)}
    rows = [
        {
            "model": "m",
            "id": q,
            "category": "math" if q < 3 else "stem",
            "turn": turn + 1,
            "answer": "A word.",
            "figure": f,
            "judges": {"j": {"figure": f}},
        }
        for q, some in ratings.items()
        for turn, f in enumerate(some)
    ]
    figures = mt_bench_figures(rows)["m"]
    assert figures["overall"] == mean_figure([3.0, 9.0, None])
    assert (figures["overall"]["mean"], figures["overall"]["unreadable"]) == (6.0, 1)
    assert figures["turn_1"]["mean"] == 5.0 and figures["turn_2"]["n"] == 2
    assert figures["categories"]["stem"]["mean"] is None
    assert figures["judges"] == {"j": {name: figures[name] for name in ("overall", "turn_1", "turn_2")}}
