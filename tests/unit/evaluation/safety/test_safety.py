"""Safety evaluation: kinds of prompts, prompts after dialogues, rates by judge, the left tail."""

from __future__ import annotations

import math

import pytest

from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.safety.figures import (
    JudgedAnswer,
    SafetyPrompt,
    after_dialogues,
    distribution,
    load_safety_prompts,
    safety_figures,
)
from rlhf.intervals import wilson
from rlhf.jsonl import write_rows


def user(text):
    return {"role": "user", "content": text}


def judged(prompt, kind, refused, *, turns=1, safety=None, gold=None, flagged=None, source="s"):
    messages = [user("q"), {"role": "assistant", "content": "a"}] * (turns - 1) + [user("q")]
    answer = Answer(prompt, 0, messages, "safety", source, "text", 1, True, safety=safety, gold=gold)
    return JudgedAnswer(answer, kind, refused, flagged)


def test_kinds_of_real_prompts(shared_data):
    xstest = load_safety_prompts("xstest", str(shared_data / "xstest" / "prompts.csv"))
    assert [one.kind for one in xstest].count("borderline") == 125 == [one.kind for one in xstest].count("unsafe")
    assert {one.prompt.source for one in xstest if one.kind == "unsafe"} == {
        f"xstest/contrast_{name}"
        for name in ("homonyms", "figurative_language", "safe_contexts", "definitions", "privacy")
    }
    goals = load_safety_prompts("advbench", str(shared_data / "advbench" / "goals.csv"))
    assert len(goals) == 520 and {one.kind for one in goals} == {"unsafe"}
    assert len({one.prompt.id for one in goals}) == 520


def test_kinds_are_the_option_s_or_the_scorer_s_or_the_row_s(tmp_path):
    write_rows(
        tmp_path / "p.jsonl", [{"prompt": "a", "kind": "ordinary"}, {"prompt": "b", "kind": "unsafe", "id": "x"}]
    )
    file = str(tmp_path / "p.jsonl")
    assert [one.kind for one in load_safety_prompts("n", file)] == ["ordinary", "unsafe"]
    assert [one.prompt.id for one in load_safety_prompts("n", file)] == ["n:1", "n:x"]
    assert {one.kind for one in load_safety_prompts("n", file, "borderline")} == {"borderline"}
    by_text = {"a": "borderline", "b": "ordinary"}
    scorer = load_safety_prompts("n", file, None, lambda messages: by_text[messages[-1]["content"]])
    assert [one.kind for one in scorer] == ["borderline", "ordinary"]
    write_rows(tmp_path / "bad.jsonl", [{"prompt": "a"}])
    with pytest.raises(InputError, match=r"bad.jsonl:1: kind: must be one of .* --kinds.n"):
        load_safety_prompts("n", str(tmp_path / "bad.jsonl"))


def test_prompts_after_dialogues():
    system = {"role": "system", "content": "be kind"}
    other = {"role": "system", "content": "be brief"}
    before = [other, user("hello"), {"role": "assistant", "content": "hi"}]
    prompts = [
        SafetyPrompt(Prompt("a", [user("bad")], "safety", "s"), "unsafe"),
        SafetyPrompt(Prompt("b", [system, user("bad")], "safety", "s"), "borderline"),
        SafetyPrompt(Prompt("c", [user("x"), {"role": "assistant", "content": "y"}, user("bad")]), "unsafe"),
    ]
    first, second = after_dialogues(prompts, [before], seed=0)
    assert first.prompt.messages == [*before, user("bad")] and first.prompt.id == "a/after" and first.kind == "unsafe"
    assert second.prompt.messages == [system, *before[1:], user("bad")] and second.kind == "borderline"
    assert prompts[0].prompt.messages == [user("bad")]  # as it was
    many = [[user(str(i)), {"role": "assistant", "content": "hi"}] for i in range(50)]
    assert after_dialogues(prompts, many, 1) == after_dialogues(prompts, many, 1) != after_dialogues(prompts, many, 2)


def test_rates_by_hand():
    def gold(violation, refusal):
        return {"violation": violation, "false_refusal": refusal, "safety": 1.0 - violation, "helpfulness": 0.5}

    low, high = math.log(0.1 / 0.9), math.log(0.9 / 0.1)
    rows = [
        judged("u1", "unsafe", True, safety=high, gold=gold(False, False), flagged=False),
        judged("u1", "unsafe", False, safety=low, gold=gold(True, False), flagged=True),  # two answers to one prompt
        judged("u2", "unsafe", False, safety=low, gold=gold(False, False), flagged=False, turns=2),
        judged("b1", "borderline", True, safety=high, gold=gold(False, True), flagged=False),
        judged("o1", "ordinary", False, safety=high, gold=gold(False, False), flagged=False),
        judged("o2", "ordinary", True, safety=high, gold=gold(False, True), flagged=False),
    ]
    figures = safety_figures("v1", rows)
    assert figures["prompts"] == {"unsafe": 2, "borderline": 1, "ordinary": 2}
    judges = figures["judges"]
    assert list(judges) == ["refusal detector", "safety reward model", "checker", "gold"]

    def violations(judge):
        return [
            (part := judges[judge]["violation"][name]) and part["rate"] for name in ("all", "single_turn", "multi_turn")
        ]

    assert violations("refusal detector") == [0.75, 0.5, 1.0]
    assert violations("safety reward model") == [0.75, 0.5, 1.0]
    assert violations("checker") == violations("gold") == [0.25, 0.5, 0.0]
    assert judges["gold"]["violation"]["all"]["ci"] == wilson(0.25, 2).ci
    assert judges["refusal detector"]["false_refusal"]["ordinary"]["rate"] == 0.5
    assert judges["refusal detector"]["false_refusal"]["borderline"]["rate"] == 1.0
    assert judges["checker"]["false_refusal"] == {"ordinary": None, "borderline": None}
    strict = safety_figures("v1", rows, threshold=0.95)["judges"]["safety reward model"]
    assert strict["violation"]["all"]["rate"] == 1.0
    # mean over prompts: (0.1 + 0.9) / 2 and 0.1; the tail over prompts too: one of two answers, and one of one
    safety = figures["scores"]["safety"]["unsafe"]
    assert safety["mean"] == pytest.approx(0.3) and safety["tail"] == 0.75 and sum(safety["histogram"]) == 3
    assert figures["scores"]["gold_safety"]["unsafe"]["mean"] == 0.75
    assert "helpfulness" not in figures["scores"]  # nobody scored it
    assert safety_figures("v1", [judged("u", "unsafe", True)])["scores"] == {}


def test_by_source_counts_what_goes_wrong_with_its_kind():
    rows = [judged("u", "unsafe", False, source="bad"), judged("o", "ordinary", False, source="fine")]
    found = safety_figures("v1", rows)["by_source"]
    assert found["bad"]["refusal detector"]["rate"] == 1.0 and found["fine"]["refusal detector"]["rate"] == 0.0
    assert found["bad"]["kind"] == "unsafe"
    mixed = safety_figures("v1", [judged("u", "unsafe", True), judged("o", "ordinary", True)])["by_source"]
    assert {name: row["refusal detector"]["rate"] for name, row in mixed.items()} == {
        "s (unsafe)": 0.0,
        "s (ordinary)": 1.0,
    }


def test_distribution_is_strict_at_the_gate_s_threshold():
    rows = [judged(str(i), "unsafe", True) for i in range(4)]
    values = dict(zip(map(id, rows), (0.15, 0.1499, 0.0, 1.0), strict=True))
    found = distribution(rows, lambda one: values[id(one)])
    assert found["tail"] == 0.5 and found["histogram"][0] == 1 and found["histogram"][-1] == 1
    assert found["quantiles"] == {"0.05": 0.0, "0.25": 0.1499, "0.5": 0.15}
    assert distribution([], lambda one: 0.0) is None


def test_a_folder_s_rows_have_kinds_too(tmp_path):
    (tmp_path / "set").mkdir()
    write_rows(
        tmp_path / "set" / "train.jsonl", [{"prompt": "a", "kind": "ordinary"}, {"prompt": "b", "kind": "unsafe"}]
    )
    assert [one.kind for one in load_safety_prompts("n", str(tmp_path / "set"))] == ["ordinary", "unsafe"]


def test_an_id_that_stands_twice_is_refused(tmp_path):
    write_rows(tmp_path / "p.jsonl", [{"prompt": text, "kind": "unsafe", "id": 7} for text in "ab"])
    with pytest.raises(InputError, match=r"p.jsonl:2: id: '7' stands at another prompt too"):
        load_safety_prompts("n", str(tmp_path / "p.jsonl"))
