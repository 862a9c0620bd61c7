"""Which answers are kept, for which reason others are not, and the figures of a round."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from made_up import completion

from rlhf.data.rows import Completion
from rlhf.errors import InputError
from rlhf.rejection.figures import selection_figures, suspicious_choice
from rlhf.rejection.selection import SelectionConfig, select, select_as_one, similarity


def answers(*rewards_and_texts: tuple[float, str]) -> list[Completion]:
    return [completion("p", "v1", i, reward, text=text) for i, (reward, text) in enumerate(rewards_and_texts)]


def kept(rows: list[Completion], **options: object) -> tuple[list[int], dict[str, int]]:
    selection = select(rows, SelectionConfig(**options))  # type: ignore[arg-type]
    return [row.index for row in selection.chosen], dict(selection.left_out)


def test_the_best_finished_answer_of_each_prompt_wins() -> None:
    rows = [
        completion("b", "v1", 0, 0.1),
        completion("a", "v1", 0, 0.9, finished=False),
        completion("a", "v1", 1, 0.3),
        completion("a", "v1", 2, 0.5, text=" "),
        completion("none", "v1", 0, 0.5, finished=False),
        completion("b", "v2", 0, -0.2),
    ]
    selection = select(rows, SelectionConfig())
    assert selection.chosen == [rows[0], rows[2]]
    assert selection.left_out == {"unfinished": 2, "empty": 1}


def test_an_unfinished_answer_is_kept_where_it_is_better_by_more_than_the_penalty() -> None:
    rows = [
        completion("p", "v1", i, r, finished=i > 1, text=t)
        for i, (r, t) in enumerate([(2.0, "a"), (9.0, " "), (1.0, "b")])
    ]
    assert kept(rows) == ([2], {"unfinished": 2})
    assert kept(rows, missing_end_penalty=0.9) == ([0], {"empty": 1})
    assert kept(rows, missing_end_penalty=1.1) == ([2], {"empty": 1})
    assert kept(rows, missing_end_penalty=1.1, top_n=2) == ([2, 0], {"empty": 1})
    below = {"empty": 1, "below minimum_reward": 1}
    assert kept(rows, missing_end_penalty=1.1, top_n=2, minimum_reward=0.95) == ([2], below), "the penalty counts there"
    assert kept(rows[:1], missing_end_penalty=99.0) == ([0], {}), "there is no other"
    figures = selection_figures(rows, 3, None, rows, select(rows, SelectionConfig(missing_end_penalty=0.0)))
    assert figures["selected_finished_share"] == 0.0 and figures["selected_mean_reward"] == 2.0, "a raw reward"


def test_all_processes_train_on_what_the_main_one_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a rule that draws at random gave each process rows of its own, and the step's shares did not fit."""
    rows = [completion(name, "v1", 0, 0.1) for name in "abcd"]

    def from_main(objects: list[Any]) -> None:
        objects[:] = [[2, 0], Counter(empty=7)]

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", from_main)
    selection = select_as_one(rows, SelectionConfig())
    assert selection.chosen == [rows[2], rows[0]] and selection.left_out == {"empty": 7}


def test_controls_choose_among_the_same_answers_without_the_reward() -> None:
    rows = [
        replace(completion(f"p{p}", "v1", i, float(i), text=f"answer {i}"), token_ids=(1,) * (9 - i))
        for p in range(400)
        for i in range(4)
    ]
    unfinished = [completion(f"p{p}", "v1", 4, 9.0, finished=False) for p in range(400)]
    drawn = select([*rows, *unfinished], SelectionConfig(rule="random"))
    assert [row.prompt_id for row in drawn.chosen] == [f"p{p}" for p in range(400)]
    assert drawn.left_out == {"unfinished": 400}
    assert drawn == select([*rows, *unfinished], SelectionConfig(rule="random")), "the same ones each time"
    better = [replace(row, reward=-row.reward) for row in rows]
    assert [r.index for r in select(better, SelectionConfig(rule="random")).chosen] == [r.index for r in drawn.chosen]
    assert all(70 < [row.index for row in drawn.chosen].count(i) < 130 for i in range(4))
    assert {row.index for row in select(rows, SelectionConfig(rule="longest")).chosen} == {0}
    tied = [replace(row, token_ids=(1,)) for row in rows]
    assert {row.index for row in select(tied, SelectionConfig(rule="longest")).chosen} == {3}, "then the better one"


def test_ties_go_to_the_more_helpful_then_to_the_newer_version_then_to_the_lower_index() -> None:
    rows = [completion("a", v, i, 0.5) for v in ("v9", "v10") for i in (1, 0)]
    rows.append(completion("a", "v9", 2, 0.5, helpfulness=0.3))
    for seed in range(5):
        # within a version the rows' order decides nothing
        shuffled = sorted(random.Random(seed).sample(rows, 5), key=lambda row: row.version == "v10")
        chosen = select(shuffled, SelectionConfig(top_n=4)).chosen
        assert [(row.version, row.index) for row in chosen] == [("v9", 2), ("v10", 0), ("v10", 1), ("v9", 0)]


def test_the_same_text_is_chosen_once() -> None:
    assert kept(answers((1, "x"), (2, "x"), (0, "y")), top_n=2) == ([1, 2], {"same text": 1})


def test_an_answer_below_the_minimum_reward_is_not_kept() -> None:
    rows = answers((0.5, "good"), (0.4999, "almost"), (-1, "bad"))
    assert kept(rows, top_n=3, minimum_reward=0.5) == ([0], {"below minimum_reward": 2})
    assert kept(rows, minimum_reward=0.6) == ([], {"below minimum_reward": 3})


def test_similarity_is_the_jaccard_index_of_word_1_to_3_grams() -> None:
    # {a, b, c, ab, bc, abc} and {a, b, d, ab, bd, abd}: 3 of 9 shared
    assert similarity("A b, c!", "a b d") == pytest.approx(3 / 9)
    assert similarity("The river is Mora.", "the river is mora") == 1.0
    assert similarity("one two", "three four") == 0.0
    assert similarity("!", "?") == 1.0 and similarity("!", "word") == 0.0


def test_near_duplicates_of_a_better_kept_answer_are_left_out() -> None:
    rows = answers((3, "a b c"), (2, "a b d"), (1, "A b c."), (0, "e f g"))
    assert kept(rows, top_n=4) == ([0, 1, 2, 3], {})
    assert kept(rows, top_n=4, max_similarity=0.99) == ([0, 1, 3], {"above max_similarity": 1})
    assert kept(rows, top_n=4, max_similarity=0.3) == ([0, 3], {"above max_similarity": 2})
    # what is itself left out keeps nothing else away: "a b d" may stay although "a b d e" is better
    chain = answers((3, "a b c"), (2, "a b c d"), (1, "c d e"))
    assert kept(chain, top_n=3, max_similarity=0.5) == ([0, 2], {"above max_similarity": 1})


def test_long_answers_are_left_out_by_the_median_of_their_prompt() -> None:
    rows = answers((9, "x" * 31), (8, "x" * 30), (7, "y" * 20), (6, "z" * 5), (5, "z" * 4))
    rows.append(completion("p", "v1", 9, 10, text="u" * 999, finished=False))  # no candidate: not in the median
    assert kept(rows, max_length_ratio=1.5) == ([1], {"above max_length_ratio": 1, "unfinished": 1})
    assert kept(rows, max_length_ratio=1) == ([2], {"above max_length_ratio": 2, "unfinished": 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_n": 0}, "top_n: must be at least 1, got 0"),
        ({"minimum_reward": float("nan")}, "minimum_reward: must be a finite number, or null for none, got nan"),
        ({"max_similarity": 1.5}, "max_similarity: must lie between 0 and 1, got 1.5"),
        (
            {"missing_end_penalty": -1.0},
            "missing_end_penalty: must be 0 or above, or null to keep no unfinished answer",
        ),
        ({"max_length_ratio": 0.9}, "max_length_ratio: must be 1 or above, or null for none, got 0.9"),
    ],
)
def test_bad_settings(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SelectionConfig(**options)  # type: ignore[arg-type]


def test_selection_figures() -> None:
    earlier = [completion("a", "v1", 0, 9.0)]
    rewards = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 8.0]
    drawn = [completion("ab"[i // 4], "v2", i % 4, reward, finished=i < 4) for i, reward in enumerate(rewards)]
    used_safety = torch.tensor([True] * 2 + [False] * 6)
    candidates = earlier + drawn
    figures = selection_figures(drawn, 4, used_safety, candidates, select(candidates, SelectionConfig()))
    assert (figures["mean_reward"], figures["median_reward"], figures["max_reward"]) == (2.25, 1.25, 6.0)
    assert [(point["k"], point["max"]) for point in figures["curve"]] == [
        (1, 2.25),
        (2, pytest.approx((20 / 6 + 4) / 2)),
        (3, pytest.approx((15 / 4 + 6) / 2)),
        (4, 6.0),
    ]
    assert figures["curve"][1]["kl_bound"] == pytest.approx(0.193147, abs=1e-6)
    assert (figures["gated_share"], figures["finished_share"], figures["mean_length"]) == (0.25, 0.5, 3.0)
    assert figures["left_out"] == {"unfinished": 4}
    assert (figures["selected"], figures["selected_by_version"]) == (1, {"v1": 1})
    assert (figures["prompts"], figures["prompts_without_answer"]) == (2, 1)
    assert figures["given_up_share"] == 0


def test_answers_given_up_early_are_no_part_of_lengths_and_finished_shares() -> None:
    """Of lengths 2, 2, 4, 4, 9, 7: given up after 2, after 4, finished at 2, at 4; cut at its longest; finished."""
    shapes = [(2, False), (2, True), (4, False), (4, True), (9, False), (7, True)]
    drawn = [
        replace(completion("a", "v1", i, 1.0, finished=finished), token_ids=tuple(range(length)))
        for i, (length, finished) in enumerate(shapes)
    ]
    used_safety = torch.zeros(6, dtype=torch.bool)
    figures = selection_figures(drawn, 6, used_safety, drawn, select(drawn, SelectionConfig()), rejected_at=(2, 4))
    assert figures["given_up_share"] == pytest.approx(2 / 6)
    assert figures["mean_length"] == (2 + 4 + 9 + 7) / 4 and figures["finished_share"] == 3 / 4
    assert "curve" not in figures


def test_few_prompts_with_an_answer_and_answers_chosen_for_their_length_are_suspicious() -> None:
    sound = {"selected": 2, "prompts_without_answer": 2, "left_out": {"unfinished": 9}}
    sound |= {"selected_mean_length": 15.0, "mean_length": 10.0}
    assert suspicious_choice(sound) == []
    assert suspicious_choice(sound | {"prompts_without_answer": 3}) == [
        "only 2 of 5 are left to train on (9 unfinished)"
    ]
    assert suspicious_choice(sound | {"selected_mean_length": 16.0}) == [
        "the chosen answers are 1.6 times as long as those drawn; selection.max_length_ratio bounds that"
    ]
    nothing = {"selected": 0, "prompts_without_answer": 4, "selected_mean_length": None}
    assert suspicious_choice(sound | nothing) == ["only 0 of 4 are left to train on (9 unfinished)"]
