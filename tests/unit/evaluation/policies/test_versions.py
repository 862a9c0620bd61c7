"""A version's figures from hand-made answers, with the numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer, by_prompt, read_answers, write_answers
from rlhf.evaluation.policies.versions import (
    TABLE,
    VersionFigures,
    against,
    figure_lines,
    gold_outcome,
    outcomes_against,
    proxy_outcome,
    version_figures,
)


def answer(
    prompt: str,
    domain: str = "helpfulness",
    kind: str = "ordinary",
    index: int = 0,
    helpfulness: float = 0.5,
    safety: float = 1.0,
    violation: bool = False,
    refusal: bool = False,
    **more: Any,
) -> Answer:
    gold = {
        "helpfulness": helpfulness,
        "safety": safety,
        "violation": violation,
        "false_refusal": refusal,
        "kind": kind,
    }
    return Answer(
        prompt_id=prompt,
        index=index,
        messages=[{"role": "user", "content": "Where is the mill?"}],
        domain=domain,  # type: ignore[arg-type]
        source=f"world/{kind}",
        answer="By the river.",
        length=more.pop("length", 4),
        finished=more.pop("finished", True),
        gold=gold,
        **more,
    )


MINE = [
    answer("o1", helpfulness=0.8),
    answer("o2", helpfulness=0.4, refusal=True),
    answer("b1", "safety", "borderline", helpfulness=0.6),
    answer("u1", "safety", "unsafe", helpfulness=0.2, safety=0.0, violation=True),
    answer("u2", "safety", "unsafe", helpfulness=0.1, safety=0.8),
]


def test_what_each_figure_averages_over() -> None:
    figures = version_figures("v1", MINE)
    assert figures["name"] == "v1" and set(figures) == VersionFigures.__required_keys__
    assert figures["gold_helpfulness"] == pytest.approx(0.6)  # o1, o2, b1: not the unsafe ones
    assert figures["gold_safety"] == pytest.approx(0.6)  # b1, u1, u2: the domain safety
    assert figures["violation_rate"] == 0.5  # u1 of u1, u2
    assert figures["false_refusal_rate"] == pytest.approx(1 / 3, abs=1e-6)  # o2 of o1, o2, b1
    low, high = figures["gold_helpfulness_ci"]
    assert low < 0.6 < high and low + high == pytest.approx(1.2)
    assert figures["by_kind"]["world/unsafe"]["prompts"] == 2 and figures["by_kind"]["world/unsafe"]["kind"] == "unsafe"
    assert figures["by_kind"]["world/unsafe"]["safety"] == pytest.approx(0.4)


def test_what_nobody_measured_is_null() -> None:
    bare = [replace(a, gold=None) for a in MINE]
    figures = version_figures("v1", bare)
    for name in ("gold_helpfulness", "gold_safety", "violation_rate", "win_rate_vs_sft", "kl_from_sft"):
        assert figures[name] is None, name
    assert figures["proxy_reward"] is None and figures["referee_ci"] is None and figures["by_kind"] is None
    assert figures["mean_length"] == 4 and figures["finished_share"] == 1.0


def test_answers_to_one_prompt_are_averaged_first() -> None:
    rows = [answer("a", helpfulness=0.0), answer("a", index=1, helpfulness=1.0), answer("b", helpfulness=1.0)]
    assert by_prompt(rows, lambda a: a.gold and a.gold["helpfulness"]) == [0.5, 1.0]
    assert version_figures("v", rows)["gold_helpfulness"] == 0.75
    repeated = [replace(a, index=i) for a in MINE for i in range(8)]
    assert version_figures("v", repeated)["gold_helpfulness_ci"] == version_figures("v", MINE)["gold_helpfulness_ci"]


def test_gold_outcome_by_domain() -> None:
    safer, helpful = answer("p", safety=0.9, helpfulness=0.1), answer("p", safety=0.2, helpfulness=0.9)
    assert gold_outcome(safer, helpful) == 0.0  # domain helpfulness looks at helpfulness alone
    safer, helpful = (replace(a, domain="safety") for a in (safer, helpful))
    assert gold_outcome(safer, helpful) == 1.0 and gold_outcome(helpful, safer) == 0.0
    close = answer("p", "safety", safety=0.88, helpfulness=0.5)  # about as safe: helpfulness decides
    assert gold_outcome(safer, close) == 0.0
    assert gold_outcome(close, close) == 0.5
    assert gold_outcome(close, replace(close, gold=None)) is None


def test_win_rate_counts_ties_half_and_skips_prompts_without_opponent() -> None:
    theirs = [answer("o1", helpfulness=0.1), answer("o2", helpfulness=0.4), answer("b1", "safety", helpfulness=0.9)]
    assert outcomes_against(MINE, theirs, gold_outcome) == [1.0, 0.5, 0.0, None, None]
    figures = version_figures("v1", MINE, theirs)
    assert figures["win_rate_vs_sft"] == 0.5 and figures["judge"] == "gold"
    assert figures["win_rate_helpfulness"] == 0.75 and figures["win_rate_safety"] == 0.0
    assert figures["proxy_win_rate_vs_sft"] is None


def test_without_gold_the_gated_rewards_decide() -> None:
    mine = [replace(a, gold=None, reward=float(i), helpfulness=0.0, safety=0.0) for i, a in enumerate(MINE)]
    theirs = [replace(a, reward=2.0, answer="By the hill.") for a in mine]
    figures = version_figures("v1", mine, theirs)
    assert figures["judge"] == "proxy"
    assert figures["win_rate_vs_sft"] == figures["proxy_win_rate_vs_sft"] == 0.5  # 0 0 .5 1 1
    assert figures["proxy_reward"] == 2.0 and figures["sft_proxy_reward"] == 2.0
    assert proxy_outcome(mine[4], theirs[0]) == 1.0


def test_scores_do_not_decide_what_needs_no_judge() -> None:
    one, other = answer("o1", reward=1.0), replace(answer("o1", reward=1.0001), answer="By the river. ")
    assert proxy_outcome(one, other) == proxy_outcome(other, one) == 0.5
    empty = replace(other, answer=" ")
    assert (proxy_outcome(one, empty), proxy_outcome(empty, one), proxy_outcome(empty, empty)) == (1.0, 0.0, 0.5)
    assert proxy_outcome(one, replace(empty, reward=None)) is None


def test_gains_are_paired_by_prompt() -> None:
    mine = [replace(a, reward=10.0 * i + 1, referee=None) for i, a in enumerate(MINE)]
    theirs = [replace(a, reward=10.0 * i) for i, a in enumerate(MINE)]
    figures = version_figures("v1", mine, theirs)
    assert figures["proxy_reward_gain"] == 1.0 and figures["proxy_reward_gain_ci"] == [1.0, 1.0]  # prompts differ by 10
    assert figures["proxy_reward_ci"][1] - figures["proxy_reward_ci"][0] > 10
    assert figures["referee_gain"] is None and version_figures("sft", mine)["proxy_reward_gain"] is None


def test_every_pair_of_answers_to_a_prompt_counts() -> None:
    mine = [answer("a", helpfulness=0.3), answer("a", index=1, helpfulness=0.7)]
    theirs = [answer("a", index=i, helpfulness=h) for i, h in enumerate((0.1, 0.5, 0.7))]
    assert outcomes_against(mine, theirs, gold_outcome) == pytest.approx([1 / 3, 2.5 / 3])


def test_rows_round_trip_and_carry_the_opponent(tmp_path: Path) -> None:
    theirs = [replace(MINE[0], answer="In the town.", reward=1.5)]
    extras = against(MINE, theirs)
    assert extras[0]["sft"]["answer"] == "In the town." and extras[0]["outcome"] == 0.5
    assert extras[1] == {"outcome": None, "sft": None}
    write_answers(tmp_path / "answers.jsonl", MINE, extras)
    assert read_answers(tmp_path / "answers.jsonl") == MINE


def test_a_broken_row_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt_id": "a", "index": 0}\n')
    with pytest.raises(InputError, match=r"answers.jsonl:1: .*lacks messages"):
        read_answers(path)


def test_what_was_measured_is_a_table_for_the_terminal() -> None:
    figures = {"win_rate_vs_sft": 0.575, "win_rate_ci": [0.506, 0.641], "proxy_safety": -0.2579, "violation_rate": None,
               "finished_share": 0.82, "kl_from_sft": 13.5, "kl_from_sft_ci": None}  # fmt: skip
    lines = [" ".join(line.split()) for line in figure_lines(figures)]
    assert lines == [
        "wins against the start 57.5% 50.6% to 64.1%",
        "safety score -0.258",
        "answers that end 82.0%",
        "KL from the start, nats an answer 13.5",
    ]
    known = {name for _, *names, _ in TABLE for name in names if name is not None}
    assert known <= VersionFigures.__required_keys__ | VersionFigures.__optional_keys__
