"""The page of `recipes/evaluation/evaluate_rewards.py`: rewards side by side, from its reward_evaluation.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf.data.rows import STRENGTHS
from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, Panel, Series, histogram, lines
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table, as_text
from rlhf.report.drawing.text import NOTHING, interval, number, percent, signed

if TYPE_CHECKING:
    from rlhf.evaluation.reward_models.preference_figures import (
        Flagged,
        PairedGain,
        RewardEvaluation,
        RewardFigures,
        Share,
    )

Bins = Literal["by_length", "by_strength", "by_safety", "by_source"]
COLOURS = {"helpfulness": BLUE, "safety": ORANGE}
BINS: dict[Bins, dict[str, tuple[str, str]]] = {
    "by_length": {
        "shorter_chosen": ("Shorter chosen", "pairs whose chosen answer is the shorter one, by more than 10 %"),
        "matched": ("Matched", "pairs whose answers differ by at most 10 % in characters"),
        "longer_chosen": ("Longer chosen", "pairs whose chosen answer is the longer one, by more than 10 %"),
    },
    "by_strength": {s: (s.capitalize(), "pairs whose chosen answer was called that much better") for s in STRENGTHS},
    "by_safety": {
        "chosen_safe_other_unsafe": ("Only chosen safe", "the chosen answer is labelled safe, the other one unsafe"),
        "both_safe": ("Both safe", "both answers are labelled safe"),
        "both_unsafe": ("Both unsafe", "both answers are labelled unsafe"),
    },
}
TITLES = {"by_length": "length", "by_strength": "how much better it was", "by_safety": "safety labels"}


def build_rewards_page(evaluation: RewardEvaluation, page: Path, title: str) -> None:
    """Write the page of a reward_evaluation.json; `title` names it."""
    domains = [group for group in evaluation["test_pairs"] if group != "all"]
    rewards = evaluation["rewards"]
    content = page_template("rewards.html.j2").render(
        title=title,
        rewards={name: reward["spec"] for name, reward in rewards.items()},
        facts=[f"{evaluation['test_pairs'][domain]} {domain} pairs" for domain in domains],
        seen=evaluation["test_prompts_in_training"],
        accuracy=accuracy_table(evaluation, domains),
        bins=[(d, [(TITLES[key], _bins_table(evaluation, d, key)) for key in BINS]) for d in domains],
        sources=[(d, table) for d in domains if (table := _source_table(evaluation, d))],
        length_panels=_bin_panels(evaluation, domains, "by_length", ["shorter", "matched", "longer"]),
        strength_panels=_bin_panels(
            evaluation, domains, "by_strength", ["signif.", "better", "slightly", "negligibly"]
        ),
        calibration=calibration_table(evaluation, domains),
        reliability_panels=[p for name in rewards if (p := _reliability_panel(name, rewards[name]["groups"], domains))],
        quality_panels=[p for name in rewards for p in _quality_panels(name, rewards[name]["groups"], domains)],
        histogram_panels=[_histogram_panel(name, rewards[name]["groups"][d], d) for d in domains for name in rewards],
        unsafe=unsafe_table(evaluation),
    )
    write_page(page, content)


def text_table(evaluation: RewardEvaluation) -> str:
    """Accuracy with its interval on each domain, NLL and ECE, and unsafe recall, a line a reward function."""
    domains = [group for group in evaluation["test_pairs"] if group != "all"]
    tables = [accuracy_table(evaluation, domains), calibration_table(evaluation, domains), unsafe_table(evaluation)]
    return "\n\n".join(as_text(table) for table in tables if table is not None)


def _all(evaluation: RewardEvaluation) -> dict[str, dict[str, RewardFigures]]:
    """name -> group -> figures, of the reward functions and then of the baselines."""
    return {name: reward["groups"] for name, reward in evaluation["rewards"].items()} | evaluation["baselines"]


def accuracy_table(evaluation: RewardEvaluation, domains: Sequence[str]) -> Table:
    """Own and other domains side by side, a row a reward function or baseline (paper, table 7)."""
    heads = [("", "")]
    beside = {domain for reward in evaluation["rewards"].values() for domain in reward.get("over_bag_of_words", {})}
    for domain in domains:
        heads.append((f"{domain.capitalize()}", f"accuracy on the test pairs of domain {domain}, ties half"))
        if domain in beside:
            heads.append(
                ("over its words", f"points over the bag of words of the {domain} training pairs, pair by pair")
            )
        heads.append(("prefers longer", f"of {domain} pairs of different length, the share where the longer one wins"))
    cut = any(reward.get("cut_off_gain") is not None for reward in evaluation["rewards"].values())
    if cut:
        heads.append(("By a cut", "what a chosen answer's score gains when its last third is cut off in mid-sentence"))
    rows = []
    for name, groups in _all(evaluation).items():
        row = [Cell(name)]
        reward = evaluation["rewards"].get(name)
        for domain in domains:
            figures = groups[domain]
            row.append(Cell(percent(figures["accuracy"]), interval(figures["ci"], 1, share=True)))
            if domain in beside:
                row.append(gain_cell(None if reward is None else reward.get("over_bag_of_words", {}).get(domain)))
            row.append(Cell(percent(figures["prefers_longer"]["share"])))
        if cut:
            gain = None if reward is None else reward.get("cut_off_gain")
            row.append(
                Cell(NOTHING)
                if reward is None or gain is None
                else Cell(signed(gain, 2), interval(reward.get("cut_off_ci"), 2))
            )
        rows.append(row)
    return Table(heads, rows)


def gain_cell(found: PairedGain | None) -> Cell:
    """A gain in points with its interval; a dash for None."""
    if found is None or found["gain"] is None:
        return Cell(NOTHING)
    return Cell(signed(100 * found["gain"], 1), interval(found["ci"], 1, share=True))


def _bins_table(evaluation: RewardEvaluation, domain: str, key: Bins) -> Table | None:
    """Accuracy by the bins of `key` on one domain; None where no row has the label."""
    found = _all(evaluation)
    pairs = {name: bin_["pairs"] for groups in found.values() for name, bin_ in groups[domain][key].items()}
    if not pairs:
        return None
    known = [(name, head) for name, head in BINS.get(key, {n: (n, "") for n in pairs}).items() if name in pairs]
    heads = [("", ""), *((f"{title} ({pairs[name]})", meaning) for name, (title, meaning) in known)]
    rows = [
        [Cell(name), *(_accuracy(groups[domain][key].get(bin_)) for bin_, _ in known)] for name, groups in found.items()
    ]
    return Table(heads, rows)


def _source_table(evaluation: RewardEvaluation, domain: str) -> Table | None:
    table = _bins_table(evaluation, domain, "by_source")
    return table if table is not None and len(table.heads) > 2 else None


def _accuracy(share: Share | None) -> Cell:
    if share is None:
        return Cell(percent(None))
    return Cell(percent(share["accuracy"]), interval(share["ci"], 1, share=True))


def calibration_table(evaluation: RewardEvaluation, domains: Sequence[str]) -> Table:
    """NLL, ECE and Brier score on each domain."""
    heads = [("", "")]
    for domain in domains:
        name = domain.capitalize()
        heads.append((f"{name} NLL", "mean -log sigmoid(r_c - r_r); 0.693 knows nothing"))
        heads.append((f"{name} ECE", "mean distance of accuracy from confidence over bins of equal counts"))
        heads.append((f"{name} Brier", "mean squared distance of sigmoid(r_c - r_r) from 1; 0.250 knows nothing"))
    rows = []
    for name, groups in _all(evaluation).items():
        if "calibration" in groups["all"]:
            row = [Cell(name)]
            for domain in domains:
                figures = groups[domain]["calibration"]
                row.append(Cell(number(figures["nll"]), interval(figures["nll_ci"])))
                row += [Cell(number(figures["ece"])), Cell(number(figures["brier"]))]
            rows.append(row)
    return Table(heads, rows)


def unsafe_table(evaluation: RewardEvaluation) -> Table | None:
    """Recall of unsafe answers at 0.5 over all rows, by the score and by the safety head; None without labels."""
    found = {name: reward["groups"]["all"]["unsafe_recall"] for name, reward in evaluation["rewards"].items()}
    known = {name: figures for name, figures in found.items() if figures is not None}  # all, or none of them
    if not known:
        return None
    counts = next(iter(known.values()))
    unsafe, safe = counts["unsafe_answers"], counts["safe_answers"]
    heads = [
        ("", ""),
        (f"Unsafe recall ({unsafe})", "answers labelled unsafe whose sigmoid(score) is below 0.5"),
        (f"Safe flagged ({safe})", "answers labelled safe whose sigmoid(score) is below 0.5"),
        ("Recall, matched", "unsafe answers below the score that flags a tenth of the safe ones"),
        ("Recall, safety head", "the same by the safety head's probability"),
        ("Safe flagged, safety head", "the same by the safety head's probability"),
        ("Recall, matched, safety head", "the same by the safety head's probability"),
    ]
    return Table(
        heads,
        [
            [Cell(name), *_flagged(figures["score"]), *_flagged(figures["safety_head"])]
            for name, figures in known.items()
        ],
    )


def _flagged(found: Flagged | None) -> list[Cell]:
    if found is None:
        return [Cell(percent(None))] * 3
    return [
        Cell(percent(found["recall"]), interval(found["recall_ci"], 1, share=True)),
        Cell(percent(found["safe_flagged"]), interval(found["safe_flagged_ci"], 1, share=True)),
        Cell(percent(found["matched_recall"]), interval(found["matched_recall_ci"], 1, share=True)),
    ]


def _bin_panels(evaluation: RewardEvaluation, domains: Sequence[str], key: Bins, names: Sequence[str]) -> list[Panel]:
    """A panel a domain and reward function: its accuracy by bin beside that of the baselines on the same rows."""
    found = []
    for domain in domains:
        shown = ("longer wins", f"bag of words, {domain}")
        baselines = {other: groups for other, groups in evaluation["baselines"].items() if other in shown}
        for name, reward in evaluation["rewards"].items():
            series = [_bin_series(name, COLOURS[domain], reward["groups"][domain], key)]
            for other, groups in baselines.items():
                dashed = other == "longer wins"
                series.append(_bin_series(other, INK if dashed else GREY, groups[domain], key, dashed))
            found.append(lines(f"{name}, {domain} pairs", series, names=names, percent=True, reference=0.5))
    return [panel for panel in found if panel is not None]


def _bin_series(label: str, colour: str, figures: RewardFigures, key: Bins, dashed: bool = False) -> Series:
    bins = [figures[key].get(name) for name in BINS[key]]
    y, ci = [None if b is None else b["accuracy"] for b in bins], [None if b is None else b["ci"] for b in bins]
    return Series(label, colour, range(len(bins)), y, ci, dashed)


def _reliability_panel(name: str, groups: dict[str, RewardFigures], domains: Sequence[str]) -> Panel | None:
    perfect = Series("as it says", GREY, [0.5, 1], [0.5, 1], dashed=True, markers=False)
    series = [perfect]
    for domain in domains:
        curve = groups[domain]["calibration"]["curve"]
        x, y = [p["confidence"] for p in curve], [p["accuracy"] for p in curve]
        series.append(Series(f"{domain} pairs", COLOURS[domain], x, y, [p["ci"] for p in curve]))
    return lines(name, series, x_label="confidence, σ(|difference|)", y_label="accuracy", percent=True)


def _quality_panels(name: str, groups: dict[str, RewardFigures], domains: Sequence[str]) -> list[Panel]:
    """The mean score by grade of true quality, where known; else the chosen answer's lead by strength."""
    graded, leads = [], []
    for domain in domains:
        figures = groups[domain]["calibration"]
        points = figures["score_by_quality"] or []
        x, y = [p["grade"] for p in points], [p["score"] for p in points]
        graded.append(Series(f"{domain} pairs", COLOURS[domain], x, y, [p["ci"] for p in points]))
        by_strength = [figures["difference_by_strength"].get(s) for s in STRENGTHS]
        means = [None if p is None else p["mean"] for p in by_strength]
        cis = [None if p is None else p["ci"] for p in by_strength]
        leads.append(Series(f"{domain} pairs", COLOURS[domain], range(len(STRENGTHS)), means, cis))
    panels = [
        lines(
            f"{name}: score by true quality",
            graded,
            x_label="grade",
            note="Mean σ(score) of the answers of each grade, 1 to 7.",
        ),
        lines(
            f"{name}: lead by strength",
            leads,
            names=["signif.", "better", "slightly", "negligibly"],
            reference=0.0,
            note="Mean raw score of the chosen answer less that of the other.",
        ),
    ]
    return [panel for panel in panels if panel is not None]


def _histogram_panel(name: str, figures: RewardFigures, domain: str) -> Panel:
    counts = figures["calibration"]["histogram"]
    groups = [("chosen", BLUE, counts["chosen"]), ("rejected", ORANGE, counts["rejected"])]
    return histogram(f"{name}, {domain} pairs", counts["edges"], groups, x_label="σ(score)")
