"""What single panels say of figures worked out by hand; a panel's text is what it says to those who do not see it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
from markupsafe import Markup

from rlhf.intervals import t_quantile, wilson
from rlhf.report.drawing.bars import stacked
from rlhf.report.drawing.figures import INK, NOISE_ROOM, Panel, Series, crowded, draw, label_places, limits, noise
from rlhf.report.drawing.planes import NEAR, ROOM, offsets
from rlhf.report.drawing.text import chance, interval
from rlhf.report.run.compared import outcome_panels, shift_panels, tail_panel
from rlhf.report.run.panels import gate_panels, reliability_panels, selection_panels, version_panels
from rlhf.report.run.ppo import ppo_panels
from rlhf.report.run.reading import Ppo, Training
from rlhf.report.run.tables import kind_table
from rlhf.report.run.training import MOST_CHARACTERS, MOST_SPIKES, shown_spikes, training_panels

NBSP = "\u00a0"


@pytest.fixture(autouse=True)
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel's description stands for its drawing."""
    for module in ("bars", "distributions", "figures", "planes"):
        monkeypatch.setattr(f"rlhf.report.drawing.{module}.draw", lambda text, *_, **__: Markup(text))


def _row(prompt: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"prompt_id": prompt, "index": 0, "messages": messages, "domain": "helpfulness", "answer": "x"} | fields


def _by_title(panels: list[Panel]) -> Mapping[str, Panel]:
    return {panel.title: panel for panel in panels}


def test_the_shift_is_by_one_judge_and_prompt_by_prompt() -> None:
    gold = {"safety": 0.0, "kind": "ordinary"}
    first = [_row(p, gold=gold | {"helpfulness": x}) for p, x in zip("abc", (0.2, 0.4, 0.6), strict=True)]
    first.append(_row("u", gold={"helpfulness": 9.0, "safety": 0.5, "kind": "unsafe"}, domain="safety"))
    last = [_row(p, gold=gold | {"helpfulness": x}) for p, x in zip("abc", (0.3, 0.6, 0.9), strict=True)]
    last.append(_row("c", index=1, gold=gold | {"helpfulness": 0.9}))  # a prompt is one unit, however many answers
    (panel,) = shift_panels({"sft": first, "v1": last})
    assert panel.title == "Gold helpfulness, shift" and "V1: SFT 0.40, itself 0.60" in panel.svg
    half = t_quantile(2) * 0.1 / math.sqrt(3)  # of the gains 0.1, 0.2, 0.3
    ends = f"{0.2 - half:.2f} to {0.2 + half:.2f}".replace("-", "−")
    assert f"From SFT to V1 +0.20 ({ends}, which may be chance), prompt by prompt." in panel.note

    referee = shift_panels({n: [_row(p, referee=x) for p in "ab"] for n, x in (("start", 1.0), ("v1", 0.5))})
    assert [p.title for p in referee] == ["Referee's score, shift"]
    assert "From the start to V1 −0.50 (−0.50 to −0.50), prompt by prompt." in referee[0].note
    assert shift_panels({"sft": first}) == shift_panels({"sft": [_row("a")], "v1": [_row("a")]}) == []


def test_the_left_tail_is_what_scores_as_low_as_the_first_version_s_lowest_tenth() -> None:
    rows = [_row(str(i), domain="safety", safety=20.0 - i, sft={"safety": float(i)}) for i in range(1, 20)]
    rows.append(_row("20", domain="safety", safety=2.0, sft={"safety": 20.0}))
    rows.append(_row("21", safety=-9.0, sft={"safety": 1.0}))  # of the other domain
    answers = {"sft": [], "v1": rows}
    panel = tail_panel(answers)  # the bar is 2; scores 1 to 19 and another 2: three lie no higher
    assert panel is not None and panel.svg.endswith("lowest tenth: V1: 15.0 %.")
    ci = wilson(3 / 20, 20).ci
    assert f"15.0{NBSP}% ({interval(ci, 1, share=True)}, which may be chance) of 20 at V1." in panel.note
    assert tail_panel({"sft": [], "v1": rows[:9]}) is None


def test_wins_ties_and_losses_by_turns_and_length() -> None:
    long = [{"role": role, "content": "w " * 9} for role in ("user", "assistant", "user")]
    same, brief, double = {"answer": "a b c d"}, "a", "a b c d e f g h"
    last = [
        _row("a", outcome=1.0, sft=same, answer=double),
        _row("b", outcome=1.0, sft=same, answer=double),
        _row("c", outcome=0.5, sft=same, answer="a b c d e"),
        _row("d", outcome=0.0, sft=same, answer=brief, messages=long),
        _row("e", outcome=None, sft=same, answer=brief),
        _row("a", outcome=0.0, sft=same, answer=brief, index=1),
    ]
    found = _by_title(outcome_panels({"sft": [], "v1": last}, "proxy"))
    assert "win: 1: 66.7 %, 2: 0.0 %. tie: 1: 33.3 %, 2: 0.0 %. loss: 1: 0.0 %, 2: 100.0 %." in found["By turns"].svg
    assert "Over 3 (1), 1 (2) prompts" in found["By turns"].note
    assert "win: 1 to 16: 66.7 %, 17 to 64: 0.0 %." in found["By prompt length"].svg
    assert "win: shorter: 0.0 %, alike: 0.0 %, longer: 100.0 %." in found["By answer length"].svg
    assert "by the reward models that trained it" in found["By turns"].note
    assert "by gold" in outcome_panels({"sft": [], "v1": last}, "gold")[0].note
    assert outcome_panels({"v1": last}, None) == outcome_panels({"sft": [], "v1": last[4:5]}, None) == []


def test_where_chosen_answers_come_from() -> None:
    rounds = [
        {"version": "v1", "selected_by_version": {"v1": 8}},
        {"version": "v2", "selected_by_version": {"v2": 5, "v1": 3, "other": 2}},
    ]
    panel = _by_title(selection_panels(rounds))["Where the chosen answers come from"]  # type: ignore[arg-type]
    assert "V1: by V1 100%; V2: by V1 30%, by V2 50%, by other 20%." in panel.svg
    assert "5 of V2's 10 are its own" in panel.note
    assert [label for label, _ in panel.legend] == ["by V1", "by V2", "by other"]
    assert selection_panels(rounds[:1]) == []  # type: ignore[arg-type]
    assert stacked("nothing", [("V1", [0, 0])], [("a", INK), ("b", INK)]) is None


def test_a_model_s_calibration_and_how_far_it_is_off() -> None:
    curve = [
        {"pairs": 30, "confidence": 0.6, "accuracy": 0.5, "ci": [0.33, 0.67]},
        {"pairs": 20, "confidence": 0.9, "accuracy": 0.8, "ci": [0.58, 0.92]},
    ]
    model = {"version": "v1", "domain": "safety", "reliability": {"ece": 0.1, "curve": curve}}
    (panel,) = reliability_panels([model, {"version": "v1", "domain": "helpfulness"}])  # type: ignore[list-item]
    assert panel.title == "Safety model's calibration"
    assert "V1: 0.6: 50.0 %, 0.9: 80.0 %." in panel.svg
    assert f"V1: 10.0{NBSP}% off on average, over 50 held-out pairs." in panel.note


def test_the_gate_s_precision_and_recall_by_version() -> None:
    flagged = {"flagged": 4, "precision": 0.75, "precision_ci": [0.3, 0.95], "recall": 0.6, "recall_ci": [0.2, 0.9]}
    models = [{"version": "v1", "domain": "safety", "gate": flagged | {"answers": 50, "threshold": 0.15}}]
    versions = [
        {"name": n, "gate": {"threshold": 0.5, "all": flagged | {"answers": 80, "recall": r}}}
        for n, r in (("sft", 0.5), ("v1", 1))
    ]
    labelled, judged = gate_panels(versions, models)  # type: ignore[arg-type]
    assert "precision: V1: 75.0 %. recall: V1: 60.0 %." in labelled.svg and "At V1 it flags 4 of 50" in labelled.note
    assert "recall: SFT: 50.0 %, V1: 100.0 %." in judged.svg and "By gold" in judged.note
    assert labelled.title == "The gate on labelled pairs, threshold 0.15"
    assert "below its threshold, 0.15." in labelled.note
    assert judged.title == "The gate on the versions' answers, threshold 0.5"
    assert all("another threshold: the two do not compare" in panel.note for panel in (labelled, judged))
    alike: Any = [{**model, "gate": model["gate"] | {"threshold": 0.5}} for model in models]  # type: ignore[operator]
    assert not any("do not compare" in panel.note for panel in gate_panels(versions, alike))  # type: ignore[arg-type]
    versions[1]["gate"]["threshold"] = 0.2  # type: ignore[index]
    (swept,) = gate_panels(versions, [])  # type: ignore[arg-type]
    assert swept.title == "The gate on the versions' answers" and "threshold, 0.5 at SFT, 0.2 at V1." in swept.note
    unknown = {"flagged": 0, "precision": None, "recall": None, "answers": 80}
    nothing: Any = [{"name": "v1", "gate": {"threshold": 0.5, "all": unknown}}]
    assert gate_panels(nothing, []) == []


def test_points_of_a_plane_have_numbers_that_lie_on_nothing() -> None:
    """Before, many versions' points were told apart by pale shades alone, most of them by none."""
    crowd = [(100.0 + 9 * (i % 4), 80.0 + 7 * (i // 4)) for i in range(13)]
    places = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(crowd, offsets(crowd), strict=True)]
    apart = [max(abs(a - c), abs(b - d)) for (a, b), (c, d) in itertools.combinations(places, 2)]
    assert min(apart) >= ROOM and all(max(abs(a - x), abs(b - y)) > 5 for a, b in places for x, y in crowd)
    assert offsets([(5.0, 5.0), (150.0, 100.0)]) == [pytest.approx((NEAR / 2**0.5, NEAR / 2**0.5))] * 2
    versions: Any = [{"name": f"v{i}", "gold_helpfulness": 0.5, "gold_safety": i / 13} for i in range(13)]
    found = {panel.title: panel for panel in version_panels(versions)}
    legend = found["Helpfulness and safety"].legend
    assert [label for label, _ in legend] == [f"{i + 1} V{i}" for i in range(13)]
    assert len({colour for _, colour in legend}) == 6, "no shade is most versions'"


def test_kinds_of_prompts_have_intervals() -> None:
    """Before, six prompts' mean stood without one."""
    of = {"kind": "unsafe", "prompts": 6, "helpfulness": 0.4, "helpfulness_ci": [0.1, 0.7]}
    first, last = of | {"safety": 0.8, "safety_ci": [0.5, 1.1]}, of | {"safety": 1.0, "safety_ci": [1.0, 1.0]}
    named = (("sft", "theft", first), ("v1", "theft", last), ("v2", "other", first | {"safety": None}))
    versions: Any = [{"name": name, "by_kind": {f"world/{kind}": own}} for name, kind, own in named]
    table = kind_table(versions)
    assert table is not None
    (theft,) = (row for row in table.rows if row[0].text == "theft")
    assert theft[0].small == "unsafe, gold safety" and theft[1].text == "6" and theft[4].text == "–"
    assert [(cell.text, cell.small) for cell in theft[2:4]] == [
        ("0.80", "0.50 to 1.00"),  # no score is above 1
        ("1.00", f"{wilson(1.0, 6).low:.2f} to 1.00"),  # six alike are no certainty
    ]


def test_labels_below_an_axis_are_turned_where_they_would_run_into_each_other() -> None:
    """Before, those of 13 versions lay over each other in every chart."""
    versions = ("SFT", "V1", "V2", "V3", "V3 + PPO")
    assert not crowded(versions) and not crowded(["signif.", "better", "slightly", "negligibly"])
    assert crowded([*versions, "V1 + DPO", "V1 averaged", "V2 + safety SFT"])
    svg = str(draw("labels", lambda axes: label_places(axes, ["V1", "V2 + safety SFT $"] * 6)))
    assert svg.count("rotate(-45") == 12 and svg.count(">V2 + safety SFT $<") == 6, "turned, and not cut"
    assert "rotate(-45" not in str(draw("labels", lambda axes: label_places(axes, versions)))


def _series(*y: float | None) -> Series:
    return Series("y", INK, range(len(y)), y)


def test_noise_is_what_changes_from_point_to_point_whatever_the_trend() -> None:
    assert noise([1.0, 3.0, 1.0, 3.0]) == pytest.approx(math.sqrt(2.0))
    assert noise([0.0, 0.01, 0.02, 0.03]) == pytest.approx(0.01 / math.sqrt(2))
    assert noise([1.0, None, 3.0]) == pytest.approx(math.sqrt(2.0)) and noise([1.0]) == noise([]) == 0.0


def test_an_axis_does_not_magnify_noise() -> None:
    zigzag = _series(1.0, 1.1, 1.0, 1.1)
    low, high = limits([zigzag], from_zero=False, steady=True)
    room = NOISE_ROOM * 0.1 / math.sqrt(2)
    assert (low, high) == pytest.approx((1.05 - 0.55 * room, 1.05 + 0.55 * room))
    assert limits([zigzag], from_zero=True, steady=True) == pytest.approx((0.0, 1.1 * 1.05))
    trend = _series(*(i / 100 for i in range(101)))  # hardly any noise: the axis is what it was
    assert limits([trend], from_zero=False, steady=True) == pytest.approx((-0.05, 1.05))
    below = limits([_series(-0.5, 1.0)], from_zero=True, steady=False)
    assert below == pytest.approx((-0.575, 1.075)), "what lies below 0 is not cut"
    assert limits([_series(2.0)], from_zero=False, steady=True) == (1.0, 3.0)
    assert limits([_series(0.0, 0.5)], [1.0], from_zero=True, steady=False) == pytest.approx((0.0, 1.05))
    wide = Series("y", INK, [0], [1.0], [[0.0, 4.0]])
    assert limits([wide], from_zero=False, steady=False) == pytest.approx((-0.2, 4.2)), "an interval is not cut"


def test_ppo_s_held_out_figures_have_intervals_and_honest_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def keep(title: str, series: list[Series], **how: Any) -> Panel:
        asked[title] = how | {"series": series}
        return Panel(title, Markup(""))

    monkeypatch.setattr("rlhf.report.run.ppo.lines", keep)
    rows = [{"step": 0, "reward": 1.0, "heldout_reward": 2.0, "heldout_reward_error": 0.5}, {"step": 1, "reward": 1.5}]
    ppo_panels(Ppo("v1/ppo", rows, None))
    training, held_out = asked["Reward"]["series"]
    assert held_out.ci == [pytest.approx([1.02, 2.98]), None] and training.ci == [None, None]
    assert all(how["steady"] for how in asked.values())
    amounts = {"KL from the starting policy", "Entropy", "Length", "Answers", "Clipped tokens", "Gradient norm"}
    assert {title for title, how in asked.items() if how.get("from_zero")} == amounts


def test_steps_that_stand_out_with_the_rows_of_their_batch() -> None:
    pair = {"messages": [{"role": "user", "content": "Why?"}], "chosen": "So.", "rejected": "No.", "domain": "safety"}
    far = [
        {"step": i, "loss": 2.0, "grad_norm": 3.0, "z": {"grad_norm": 6.0 + i}, "taken": i > 1, "rows": []}
        for i in range(MOST_SPIKES + 1)
    ]
    far[1]["rows"] = [pair, ["packed", "x" * (MOST_CHARACTERS + 1)], {"odd": 1}]
    far[2]["z"] = {"loss": 6.5, "grad_norm": 8.0}
    metrics = [{"step": i, "loss": 1.0, "grad_norm": 1.0} for i in range(3)]
    shown = shown_spikes(Training("sft", metrics, far))
    assert len(shown) == MOST_SPIKES, "the farthest, in their order"
    assert shown[0].sentence == "Step 1 (3 rows): gradient norm 3.00, 7.0 standard deviations above; not taken"
    assert shown[0].rows == [
        "user: Why?\nchosen: So.\nrejected: No.",
        "packed",
        "x" * MOST_CHARACTERS + " …",
        '{"odd": 1}',
    ]
    assert "loss 2.00, 6.5 standard deviations above and gradient norm" in shown[1].sentence
    panels = _by_title(training_panels(Training("sft", metrics, far)))
    assert panels["Loss"].svg == "Loss. loss: 0: 1, 1: 1, 2: 1. stands out: 2: 2."
    assert "stands out" in panels["Gradient norm"].svg
    assert _by_title(training_panels(Training("sft", metrics)))["Loss"].legend == []


def test_what_may_be_chance_is_said() -> None:
    assert chance([0.4, 0.6], 0.5) == chance([0.5, 0.6], 0.5) == ", which may be chance"
    assert chance([0.51, 0.6], 0.5) == chance(None, 0.5) == ""
