"""Seeds of one plan pooled, by hand: two runs, two prompts, one version and a branch."""

from __future__ import annotations

from typing import Any

from rlhf.intervals import mean_interval
from rlhf.report.drawing.tables import as_markdown
from rlhf.report.drawing.text import interval
from rlhf.report.run.pooled import branch_table, pooled_table


def row(prompt: str, length: int, reward: float, referee: float, start_s: float | None = None) -> dict[str, Any]:
    """start_s: what this row's judges say of the start's answer."""
    asked = [{"role": "user", "content": prompt}]
    own = {"prompt_id": prompt, "index": 0, "messages": asked, "length": length, "reward": reward, "referee": referee}
    return own | {"helpfulness": None, "safety": None, "sft": None if start_s is None else {"reward": start_s}}


def runs() -> list[dict[str, list[dict[str, Any]]]]:
    one = {
        "start": [row("a", 10, 9.0, 0.0), row("b", 10, 9.0, 1.0)],
        "v1": [row("a", 12, 1.0, 1.0, start_s=0.0), row("b", 10, 1.0, 1.0, start_s=0.0)],
    }
    two = {
        "start": [row("a", 20, 9.0, 0.0), row("b", 20, 9.0, 0.0)],
        "v1": [row("a", 20, 2.0, 1.0, start_s=1.0), row("b", 24, 5.0, 1.0, start_s=2.0)],
        "v1_random": [row("a", 20, 2.0, 1.0, start_s=1.0)],
    }
    return [one, two]


def test_a_prompt_s_leads_are_averaged_over_the_runs() -> None:
    table = pooled_table(runs())
    assert table is not None
    lines = [line.replace("\u00a0", " ") for line in as_markdown(table).splitlines()]
    assert lines[0] == "| Over the start | Reward | Referee | Tokens |"
    assert len(lines) == 4, "what one run alone has is left out"
    reward = mean_interval([1.0, 2.0])  # a: 1 and 1; b: 1 and 3, by the judges of the version's own row
    assert reward is not None
    assert f"+1.50 ({interval(reward.ci, 2)}; +1.00, +2.00)".replace("\u00a0", " ") in lines[2]
    assert "| +0.75 (" in lines[2] and "; +0.50, +1.00)" in lines[2], "the referee's a: 1 and 1, b: 0 and 1"
    assert "+1.5 (" in lines[2] and "; +1.0, +2.0)" in lines[2], "tokens, a: 2 and 0; b: 0 and 4"
    assert lines[3].startswith("| V1, equal length | 0.00 | +1.50 |"), "through (1, 1), (2, 2); (1, 1), (2, 0.5)"


def test_a_version_over_its_controls() -> None:
    """The scores that both rows have of one version's judges; `sft` is the start's, and plays no part."""
    one, two = runs()
    for run in (one, two):
        run["v1_random"] = [row("a", 12, 0.5, 0.0, start_s=7.0), row("b", 10, 1.5, 1.0, start_s=7.0)]
    table = branch_table([one, two], ["start", "v1"], ["v1_random", "v2_random"])
    assert table is not None
    lines = [line.replace("\u00a0", " ") for line in as_markdown(table).splitlines()]
    assert lines[0] == "| Over a branch | Reward | Referee | Tokens |" and len(lines) == 4
    assert lines[2].startswith("| V1 over V1 (random) | +1.25 ("), "a: 0.5 and 1.5, b: -0.5 and 3.5"
    assert "; 0.00, +2.50)" in lines[2] and "; +0.50, +0.50)" in lines[2]
    one["v1_random"][0]["finished"] = False
    table = branch_table([one], ["start", "v1"], ["v1_random"])
    assert table is not None
    lines = [line.replace("\u00a0", " ") for line in as_markdown(table).splitlines()]
    assert lines[4].startswith("| V1 over V1 (random), finished answers | −0.50 |"), "b alone"
    assert branch_table([one], ["start", "v1"], ["v2_random"]) is None


def test_runs_on_other_prompts_are_not_pooled() -> None:
    one, two = runs()
    two["start"][0]["messages"] = [{"role": "user", "content": "another"}]
    assert pooled_table([one, two]) is None
    assert pooled_table([one, {}]) is None
    assert pooled_table([{"start": one["start"]}, {"start": one["start"]}]) is None
