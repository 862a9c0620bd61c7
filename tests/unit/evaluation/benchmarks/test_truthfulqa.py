"""TruthfulQA: both figures by hand, log-probabilities as plain transformers gives them, the real questions."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.truthfulqa import (
    Question,
    answer_logprobs,
    generation_figures,
    mc1,
    mc2,
    multiple_choice_figures,
    read_questions,
)
from rlhf.intervals import wilson
from rlhf.jsonl import write_rows


def test_both_figures_by_hand():
    logprobs = {"t": math.log(0.2), "u": math.log(0.1), "f": math.log(0.1), "g": math.log(0.4)}
    assert mc1(logprobs, {"t": True, "f": False}) == 1.0
    assert mc1(logprobs, {"t": True, "g": False}) == 0.0
    assert mc1(logprobs, {"u": True, "f": False}) == 0.0  # a tie
    assert mc2(logprobs, {"t": True, "u": True, "f": False, "g": False}) == pytest.approx(0.3 / 0.8)
    shifted = {answer: value - 2000 for answer, value in logprobs.items()}  # exp of these alone is 0
    assert mc2(shifted, {"t": True, "u": True, "f": False, "g": False}) == pytest.approx(0.3 / 0.8)
    questions = [Question("q", {"t": True, "f": False}, {"t": True, "f": False})] * 2
    figures = multiple_choice_figures(questions, [logprobs, {**logprobs, "t": -9.0}])
    assert figures["mc1"] == {"mean": 0.5, "ci": wilson(0.5, 2).ci}


def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens(shared_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    questions = read_questions(str(shared_data / "truthfulqa" / "mc_task_400.json"))
    assert len(questions) == 400 and all(sum(q.mc1.values()) == 1 for q in questions)
    found = answer_logprobs(model, tokenizer, questions[:2])
    for question, logprobs in zip(questions[:2], found, strict=True):
        assert set(logprobs) == {*question.mc1, *question.mc2}
        answer = max(logprobs, key=len)
        start = len(tokenizer(question.prompt).input_ids)
        ids = torch.tensor([tokenizer(f"{question.prompt} {answer}").input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits.log_softmax(-1)
        expected = sum(logits[0, t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))
        assert logprobs[answer] == pytest.approx(expected, abs=1e-3)


def test_what_the_context_does_not_hold_is_cut_from_the_front(tiny_tokenizer, tiny_policy_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)  # a context of 256; the examples have far more
    question = Question("what ?", {"mora .": True, "velda .": False}, {"mora .": True, "velda .": False})
    [logprobs] = answer_logprobs(model, tiny_tokenizer, [question])
    ids = tiny_tokenizer(f"{question.prompt} mora .").input_ids
    tail = len(ids) - len(tiny_tokenizer(question.prompt).input_ids)
    assert len(ids) > 256
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[-256:]])).logits.log_softmax(-1)
    expected = sum(logits[0, t - 1, ids[-256:][t]].item() for t in range(256 - tail, 256))
    assert logprobs["mora ."] == pytest.approx(expected, abs=1e-3)


def test_generated_answers_count_when_both_judges_agree():
    figures = generation_figures([0.9, 0.9, 0.1, 0.5], [0.9, 0.2, 0.9, 0.9])
    assert {name: one["mean"] for name, one in figures.items()} == {"truthful": 0.5, "informative": 0.75, "both": 0.25}


def test_the_hub_s_rows_and_bad_ones(tmp_path):
    targets = {"choices": ["yes", "no"], "labels": [1, 0]}
    write_rows(tmp_path / "hub.jsonl", [{"question": "q", "mc1_targets": targets, "mc2_targets": targets}])
    assert read_questions(str(tmp_path / "hub.jsonl")) == [
        Question("q", {"yes": True, "no": False}, {"yes": True, "no": False})
    ]
    write_rows(tmp_path / "bad.jsonl", [{"question": "q", "mc1_targets": targets}])
    with pytest.raises(InputError, match=r"bad.jsonl:1: not a TruthfulQA question"):
        read_questions(str(tmp_path / "bad.jsonl"))
    both = {"a": 1, "b": 1}
    write_rows(tmp_path / "two.jsonl", [{"question": "q", "mc1_targets": both, "mc2_targets": targets}])
    with pytest.raises(InputError, match=r"two.jsonl:1: mc1 needs one true answer"):
        read_questions(str(tmp_path / "two.jsonl"))
