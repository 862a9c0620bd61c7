"""Pairs judged in both orders: what is asked, what is read, what the two judgements make."""

from __future__ import annotations

import pytest

from rlhf.conversation import Conversation
from rlhf.rewards.pair_judge import (
    Opinion,
    TwoAnswers,
    Verdict,
    divided,
    judge_agreements,
    judge_counts,
    judge_requests,
    majority,
    opinion,
    panel_opinion,
    read_verdict,
)

TALK: Conversation = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why {a}?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "And then?"},
]


def test_a_pair_is_asked_in_both_orders() -> None:
    one, other = (request[0]["content"] for request in judge_requests(TwoAnswers(TALK, "{b}", "No.", "helpfulness")))
    assert "System: Be brief.\n\nUser: Why {a}?\n\nAssistant: Because.\n\nUser: And then?" in one
    assert "[answer A begins]\n{b}\n[answer A ends]" in one and "[answer B begins]\nNo.\n[answer B ends]" in one
    assert "[answer A begins]\nNo.\n[answer A ends]" in other and "[answer B begins]\n{b}\n[answer B ends]" in other
    assert "helps the user more" in one and "[[A safe]]" not in one
    safety = judge_requests(TwoAnswers(TALK, "x", "y", "safety"))[0][0]["content"]
    assert "is safer" in safety and "[[A safe]]" in safety


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A does [[B better]] less.\n[[A significantly]]", Verdict("A", "significantly")),
        ("[[b slightly better]]", Verdict("B", "slightly")),
        ("so [[ A ]].", Verdict("A")),
        ("[[C]]", Verdict("tie")),
        ("[[Tie]]", Verdict("tie")),
        ("[[B better]] [[A unsafe]] [[B safe]]", Verdict("B", "better", False, True)),
        ("[[A much]]", Verdict("A")),
        ("[[About]] [A] A is better", Verdict()),
        ("[[A is slightly better than B]]", Verdict("A", "slightly")),
        ("[[A better, though not by much]]", Verdict("A", "better")),
        ("[[A slightly worse]]", Verdict()),
        ("[[A is less helpful]]", Verdict()),
        ("[[A and B are alike]]", Verdict()),
        ("[[A/B]] [[B or A]] [[A not better]]", Verdict()),
        ("[[A better]] [[A is safe]] [[B is unsafe]]", Verdict("A", "better", True, False)),
        ("[[A better]] [[B not safe]]", Verdict("A", "better")),
        ("", Verdict()),
    ],
)
def test_verdicts_are_read_from_the_brackets(text: str, verdict: Verdict) -> None:
    assert read_verdict(text) == verdict


@pytest.mark.parametrize(
    ("a_first", "b_first", "made"),
    [
        ("[[A significantly]]", "[[B slightly]]", Opinion(1.0, strength="slightly")),
        ("[[B]]", "[[A better]]", Opinion(0.0, strength="better")),
        ("[[tie]]", "[[C]]", Opinion(0.5)),
        ("[[A better]]", "[[A better]]", Opinion(0.5, order_decides=True)),
        ("[[tie]]", "[[A better]]", Opinion(0.5, order_decides=True)),
        ("[[A better]]", "who knows", Opinion(None)),
        (
            "[[A better]] [[A safe]] [[B unsafe]]",
            "[[B better]] [[A unsafe]] [[B safe]]",
            Opinion(1.0, strength="better", a_safe=True, b_safe=False),
        ),
        (
            "[[A better]] [[A safe]] [[B unsafe]]",
            "[[B better]] [[A safe]] [[B unsafe]]",
            Opinion(1.0, strength="better"),
        ),
    ],
)
def test_both_orders_make_an_opinion(a_first: str, b_first: str, made: Opinion) -> None:
    assert opinion(a_first, b_first) == made


@pytest.mark.parametrize(
    ("outcomes", "made"),
    [
        ([1.0, 1.0, 0.0], 1.0),
        ([0.0, 0.5, None], 0.0),
        ([1.0, 0.0], 0.5),
        ([0.5, 0.5, None], 0.5),
        ([1.0, 0.5, 0.5, 0.0, 0.0], 0.0),
        ([None, None], None),
        ([], None),
    ],
)
def test_of_several_judges_the_majority_decides(outcomes: list[float | None], made: float | None) -> None:
    assert majority(outcomes) == made


def test_a_panel_has_one_opinion() -> None:
    """The weakest strength of those who won, and the labels that nobody contradicts."""
    sure = Opinion(1.0, strength="significantly", a_safe=True, b_safe=True)
    unsure = Opinion(1.0, strength="slightly", a_safe=True, b_safe=False)
    other = Opinion(0.0, strength="negligibly")
    assert panel_opinion([sure, unsure, other]) == Opinion(1.0, strength="slightly", a_safe=True)
    assert panel_opinion([sure, other]) == Opinion(0.5, a_safe=True, b_safe=True)
    assert panel_opinion([Opinion(0.5, order_decides=True), Opinion(None)]) == Opinion(0.5, order_decides=True)
    assert panel_opinion([Opinion(0.5, order_decides=True), Opinion(0.5)]) == Opinion(0.5)
    assert panel_opinion([unsure]) == unsure and panel_opinion([Opinion(None)]) == Opinion(None)


def test_disagreement_of_judges_is_counted() -> None:
    outcomes = {"a": [1.0, 0.0, 0.5, 1.0, None], "b": [1.0, 1.0, 1.0, 0.0, 1.0], "c": [None] * 5}
    one, *rest = judge_agreements(outcomes)
    assert (one["judges"], one["pairs"], one["same"], one["rate"]) == (["a", "b"], 3, 1, pytest.approx(1 / 3))
    assert [(own["pairs"], own["rate"], own["ci"]) for own in rest] == [(0, None, None)] * 2
    assert divided(outcomes) == 2 and divided({"a": [1.0]}) == 0


def test_counts_add_up() -> None:
    opinions = [Opinion(1.0), Opinion(0.0), Opinion(0.5), Opinion(0.5, order_decides=True), Opinion(None)]
    assert judge_counts(opinions) == {"pairs": 5, "decided": 2, "ties": 1, "order_decides": 1, "unreadable": 1}
