"""What looks wrong about rows that a stage made itself: each rule just beyond its threshold, and silent at it."""

from __future__ import annotations

from statistics import fmean

import pytest

from rlhf.data.suspicion import (
    measured_answers,
    no_room_share,
    suspicious_agreement,
    suspicious_answers,
    suspicious_cuts,
    suspicious_ends,
    suspicious_selection,
)


@pytest.mark.parametrize("answers", [10, 100, 1000])
def test_three_answers_in_ten_may_be_cut_off(answers: int) -> None:
    finished = answers * 7 // 10
    assert suspicious_answers(fmean(i < finished for i in range(answers))) == []
    assert len(suspicious_answers(fmean(i < finished - 1 for i in range(answers)))) == 1


def test_the_sentence_names_the_share_and_the_option() -> None:
    assert suspicious_answers(1 / 32) == ["97% of the answers are cut off; raise sampling.max_new_tokens"]
    assert suspicious_answers(0.0, "max_tokens") == ["100% of the answers are cut off; raise max_tokens"]


def test_the_start_s_own_answers_are_told_from_what_a_run_has_made() -> None:
    assert suspicious_answers(0.62, whose=measured_answers("start")) == [
        "38% of the start's own answers (no training has touched it) are cut off; raise sampling.max_new_tokens"
    ]
    assert suspicious_answers(0.62, whose=measured_answers("v1")) == suspicious_answers(0.62)


def test_answers_that_a_context_ended_get_another_way_out_than_those_cut_off() -> None:
    answers = [(True, 8), (True, 3), (False, 8), (False, 5)]  # of at most 8 tokens
    assert no_room_share(answers, 8) == 0.25 and no_room_share([], 8) == 0.0
    cut_off = "25% of the answers are cut off; raise sampling.max_new_tokens"
    no_room = "25% of the answers end where a context does; leave long prompts out, or name a model of a longer context"
    assert suspicious_answers(0.5, no_room=0.25) == [cut_off, no_room]
    assert suspicious_answers(0.75, no_room=0.25) == []
    assert suspicious_answers(0.6, no_room=0.4) == [no_room.replace("25", "40")], "nothing is to be raised"


def test_no_answer_is_no_answer_that_is_cut_off() -> None:
    assert suspicious_ends(iter(())) == []
    assert suspicious_ends((i < 6 for i in range(10)), "max_tokens") == suspicious_answers(0.6, "max_tokens") != []


def test_three_dialogues_in_ten_may_be_cut_for_a_reward_model() -> None:
    assert suspicious_cuts({"helpfulness": 0.3, "safety": 0.31}) == [
        "safety scored 31% of its dialogues cut to its context; leave long prompts out, or name a model of a longer "
        "context"
    ]


def test_a_judge_is_to_agree_more_than_the_most_frequent_label() -> None:
    assert suspicious_agreement(0.4, 0.6, 0.6) == []
    assert suspicious_agreement(0.0, 0.28, 1.0) == [
        "always saying the most frequent label does better (100.0%) than its agreement with people, 0.0%"
    ]


def test_half_of_the_rows_may_be_left_out() -> None:
    assert suspicious_selection(5, 10, {"unfinished": 5}) == suspicious_selection(0, 0, {}) == []
    assert suspicious_selection(4, 10, {"unfinished": 5, "empty": 0, "too long": 1}) == [
        "only 4 of 10 are left to train on (5 unfinished, 1 too long)"
    ]
    assert suspicious_selection(4, 10, {}) == ["only 4 of 10 are left to train on"]
