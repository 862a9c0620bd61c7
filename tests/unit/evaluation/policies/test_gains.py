"""Gains over the start prompt by prompt and at equal length, and how varied answers are, worked out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rlhf.evaluation.answers import Answer
from rlhf.evaluation.policies.gains import gain_figures
from rlhf.evaluation.policies.wording import distinct_2, repetition
from rlhf.report.drawing.tables import as_markdown
from rlhf.report.run.gains import gain_table


def answer(prompt: str, text: str = "yes", length: int = 10, index: int = 0, **scores: float) -> Answer:
    asked = [{"role": "user", "content": "?"}]
    return Answer(prompt, index, asked, "helpfulness", "", text, length, True, **scores)  # type: ignore[arg-type]


THEIRS = [answer(f"p{i}", reward=0.5, referee=-1.0) for i in range(4)]


def longer_is_better() -> list[Answer]:
    """1 and half a point a token above the start's, and what is orthogonal to that; two answers to the last prompt."""
    more, noise = [0, 2, -2, 4], [-0.1, -0.1, 0.1, 0.1]
    mine = [
        answer(f"p{i}", length=10 + m, reward=0.5 + 1 + 0.5 * m + e, referee=-1.0 + 0.25)
        for i, (m, e) in enumerate(zip(more, noise, strict=True))
    ]
    last = mine.pop()
    return [
        *mine,
        *(answer("p3", length=14 + d, index=i, reward=last.reward + d, referee=-0.75) for i, d in ((0, 1), (1, -1))),
    ]


def test_a_gain_of_length_alone_is_none_at_equal_length() -> None:
    found = gain_figures(longer_is_better(), THEIRS)
    assert found["proxy_reward_gain"] == pytest.approx(1.5) and found["length_gain"] == pytest.approx(1.0)
    assert found["proxy_reward_gain_equal_length"] == pytest.approx(1.0)
    half = 4.30265 * 0.006**0.5  # tests/unit/test_intervals.py has the same points
    assert found["proxy_reward_gain_equal_length_ci"] == pytest.approx([1 - half, 1 + half], rel=1e-5)
    assert found["referee_gain"] == found["referee_gain_equal_length"] == pytest.approx(0.25)
    assert found["proxy_safety_gain"] is None and found["proxy_safety_gain_equal_length_ci"] is None
    alone = gain_figures(longer_is_better(), [])
    assert set(alone.values()) == {None} and set(alone) == set(found)


def test_what_cut_answers_score_is_no_gain_of_finished_ones() -> None:
    """Two of the start's answers are cut, and liked; of the version's two to p0 one is; to p3 the start has none."""
    theirs = [replace(row, reward=9.0, finished=False) if row.prompt_id in ("p1", "p3") else row for row in THEIRS]
    mine = [answer(f"p{i}", reward=0.5 + gain) for i, gain in enumerate((0.2, 5.0, 0.4))]
    mine += [replace(answer("p0", index=1, reward=-7.0), finished=False), answer("p3", reward=1.0)]
    found = gain_figures(mine, theirs)
    assert found["proxy_reward_gain_finished"] == pytest.approx((0.2 + 0.4) / 2)
    half = 12.7062 * (2 * 0.1**2) ** 0.5 / 2**0.5
    assert found["proxy_reward_gain_finished_ci"] == pytest.approx([0.3 - half, 0.3 + half], rel=1e-5)
    assert found["proxy_reward_gain"] is not None and found["proxy_reward_gain"] < -2
    assert gain_figures(mine[:3], THEIRS)["proxy_reward_gain_finished"] is None, "all finished: no other gain"


def test_a_row_a_way_of_measuring_stands_in_the_report() -> None:
    start: Any = {"name": "start", "proxy_reward_gain": None}
    control: Any = {"name": "v1_random"} | gain_figures(longer_is_better(), THEIRS)
    table = gain_table([start, control])
    assert table is not None
    lines = [line.replace("\u00a0", " ") for line in as_markdown(table).splitlines()]
    assert lines[0] == "| Over the start | Reward | Referee | Tokens |"
    assert lines[2].startswith("| V1 (random) | +1.50 (") and lines[2].endswith("| +1.0 (−3.1 to 5.1) |")
    assert lines[3] == "| V1 (random), equal length | +1.00 (0.67 to 1.33) | +0.25 (0.25 to 0.25) | – |"
    assert gain_table([start]) is None


def test_distinct_pairs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the counts were added one to another: 10,000 answers took minutes."""
    monkeypatch.setattr(Counter, "__add__", None)
    found = distinct_2([answer("a", "the mill by the mill"), answer("b", "The MILL stands")])
    # the pairs: the mill (twice in a, once in b), mill by, by the, mill stands: 4 distinct of 6
    assert found is not None and found.mean == pytest.approx(4 / 6)
    without = [2 / 2, 3 / 4]  # b alone, a alone
    half = 12.7062 * (0.5 * sum((x - 0.875) ** 2 for x in without)) ** 0.5
    assert found.ci == pytest.approx([max(0.0, 4 / 6 - half), min(1.0, 4 / 6 + half)])
    assert distinct_2([answer("a", "yes"), answer("b", "")]) is None, "no pair"
    alone = distinct_2([answer("a", "one two"), answer("b", "yes")])
    assert alone is not None and (alone.mean, alone.ci) == (1.0, None), "without it there would be none"


def test_repetition_is_of_one_answer() -> None:
    assert repetition(answer("a", "no no no no no no")) == pytest.approx(2 / 3)  # three runs of four, one distinct
    assert repetition(answer("a", "a b c d e")) == 0.0 == repetition(answer("a", ""))
