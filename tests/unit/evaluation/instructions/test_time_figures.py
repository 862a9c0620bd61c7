"""Shares of right answers by policy, group and period, by hand."""

from __future__ import annotations

import pytest

from rlhf.evaluation.instructions.time_awareness import DatedAnswer, time_figures
from rlhf.intervals import mean_interval, rate_interval
from rlhf.report.pages.time_awareness import time_table


def answers(policy: str, run: str, right: dict[str, list[bool]]) -> list[DatedAnswer]:
    """Per question text its answers, the first one asked before the event."""
    return [
        DatedAnswer(policy, run, "trained", "earlier" if i else "not yet", [{"role": "user", "content": q}], "a", r)
        for q, values in right.items()
        for i, r in enumerate(values)
    ]


def test_a_fact_s_questions_are_averaged_first_and_the_gain_is_paired() -> None:
    rows = time_figures(
        [
            *answers("old", "a", {"q": [False, True], "p": [False, False, False, True]}),
            *answers("old", "b", {"q": [False, False]}),
            *answers("new", "a", {"q": [True, True], "p": [True, True, False, True]}),
            *answers("new", "b", {"q": [True, False]}),
        ]
    )
    found = {(row["policy"], row["period"]): row for row in rows}
    assert set(found) == {(p, period) for p in ("old", "new") for period in ("all", "not yet", "earlier")}
    old, new = found["old", "all"], found["new", "all"]
    assert old["right"] == pytest.approx((0.5 + 0.25 + 0) / 3) and old["gain"] is None
    assert new["right"] == pytest.approx((1 + 0.75 + 0.5) / 3) and new["gain"] == pytest.approx(0.5)
    assert new["ci"] == rate_interval([1, 0.75, 0.5]).ci  # type: ignore[union-attr]
    assert (new["facts"], new["questions"], new["by_run"]) == (3, 8, {"a": 0.875, "b": 0.5})
    assert new["gain_ci"] == mean_interval([0.5, 0.5, 0.5]).ci  # type: ignore[union-attr]
    assert found["new", "earlier"]["right"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["new", "not yet"]["right"] == 1
    table = time_table(rows)
    assert (
        table.splitlines()[0] == "| policy, questions | all | not yet | earlier | gain over the first | facts | runs |"
    )
    assert "| new, trained | 75.0" in table and "+50.0 points" in table and "88\u00a0%, 50\u00a0%" in table
