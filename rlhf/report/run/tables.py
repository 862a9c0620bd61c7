"""The tables of a run: versions, reward models, the gate, selections, kinds of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhf.data.rows import STRENGTHS
from rlhf.intervals import wilson
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import (
    NOTHING,
    first_label,
    interval,
    number,
    percent,
    signed,
    student_label,
    version_label,
)
from rlhf.rewards.gate_quality import SHARES

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import FlaggedAnswers, KindFigures, VersionFigures
    from rlhf.rejection.figures import RoundFigures
    from rlhf.rewards.gate_quality import CountedGateQuality
    from rlhf.rewards.training.accuracy import SummarisedReport

Figure = Literal[
    "gold_helpfulness",
    "gold_safety",
    "violation_rate",
    "false_refusal_rate",
    "win_rate_vs_sft",
    "judge_win_rate_helpfulness",
    "judge_win_rate_safety",
    "proxy_win_rate_vs_sft",
    "proxy_reward_gain",
    "referee_score",
    "kl_from_sft",
    "mean_length",
    "finished_share",
    "distinct_2",
    "repetition",
]
"""A number of a version that is shown; each has its interval."""
Interval = Literal[
    "gold_helpfulness_ci",
    "gold_safety_ci",
    "violation_ci",
    "false_refusal_ci",
    "win_rate_ci",
    "judge_win_rate_helpfulness_ci",
    "judge_win_rate_safety_ci",
    "proxy_win_rate_ci",
    "proxy_reward_gain_ci",
    "referee_ci",
    "kl_from_sft_ci",
    "mean_length_ci",
    "finished_ci",
    "distinct_2_ci",
    "repetition_ci",
]

GOLD = "Gold: what the simulated world's own scorer says, 0 to 1. It knows the truth and trains nothing."
REFEREE = "raw score of a reward model that trains nothing, of pairs that no other model has learnt from"


OTHER_DOMAIN = (
    "Other domain: accuracy on the other domain's held-out pairs. Below a half is no fault: where the more helpful "
    "answer is often the less safe one, either model prefers what people rejected in the other's domain, which is why "
    "there are two."
)


@dataclass(frozen=True)
class _Column:
    title: str
    meaning: str
    key: Figure
    ci: Interval
    text: Callable[[float | None], str]
    digits: int = 3
    share: bool = False

    def cell(self, version: VersionFigures) -> Cell:
        small = interval(version.get(self.ci), 1 if self.share else self.digits, share=self.share)
        return Cell(self.text(version.get(self.key)), small)


def _mean(title: str, meaning: str, key: Figure, ci: Interval, digits: int) -> _Column:
    return _Column(title, meaning, key, ci, lambda value: number(value, digits), digits)


def _share(title: str, meaning: str, key: Figure, ci: Interval) -> _Column:
    return _Column(title, meaning, key, ci, percent, share=True)


def _gain(title: str, meaning: str, key: Figure, ci: Interval) -> _Column:
    return _Column(title, meaning, key, ci, lambda value: NOTHING if value is None else signed(value, 2), 2)


_JUDGED = (
    "share of comparisons on prompts of domain {} that this version wins against the opponent, by the judge model "
    "asked in both orders; ties, and verdicts that the order decides, count half"
)
COLUMNS = [
    _mean(
        "Gold helpfulness",
        "0 to 1, by the simulated world's own scorer, over ordinary and borderline prompts",
        "gold_helpfulness",
        "gold_helpfulness_ci",
        3,
    ),
    _mean(
        "Gold safety",
        "0 to 1, by the same, over the prompts of the domain safety",
        "gold_safety",
        "gold_safety_ci",
        3,
    ),
    _share("Violations", "unsafe requests that were fulfilled", "violation_rate", "violation_ci"),
    _share(
        "False refusals",
        "ordinary and borderline requests that were refused",
        "false_refusal_rate",
        "false_refusal_ci",
    ),
    _share(
        "Wins against {first}",
        "share of comparisons with {first}'s answers to the same prompts that this version wins, ties half; by gold "
        "where there is gold, else by this version's reward models",
        "win_rate_vs_sft",
        "win_rate_ci",
    ),
    _share(
        "Judge: helpfulness",
        _JUDGED.format("helpfulness"),
        "judge_win_rate_helpfulness",
        "judge_win_rate_helpfulness_ci",
    ),
    _share("Judge: safety", _JUDGED.format("safety"), "judge_win_rate_safety", "judge_win_rate_safety_ci"),
    _gain(
        "Reward over {first}",
        "mean gated reward less that of {first}'s answers, both by this version's reward models; raw score",
        "proxy_reward_gain",
        "proxy_reward_gain_ci",
    ),
    _mean(
        "Referee",
        REFEREE,
        "referee_score",
        "referee_ci",
        3,
    ),
    _mean(
        "KL from {first}",
        "nats per answer, from the answers' log-probabilities under both",
        "kl_from_sft",
        "kl_from_sft_ci",
        2,
    ),
    _mean("Length", "tokens per answer", "mean_length", "mean_length_ci", 1),
    _share("Finished", "answers that end by themselves", "finished_share", "finished_ci"),
    _mean(
        "Distinct pairs",
        "distinct word pairs over all word pairs of the answers; it falls with length",
        "distinct_2",
        "distinct_2_ci",
        3,
    ),
    _share("Repeated", "of an answer's runs of four words, those it has said before", "repetition", "repetition_ci"),
]


def version_table(versions: Sequence[VersionFigures], students: Sequence[VersionFigures] = ()) -> Table:
    """A row a version, the first one what the others are compared with, then one a student; columns that none has are
    left out."""
    first = first_label([v["name"] for v in versions])
    columns = [c for c in COLUMNS if any(v.get(c.key) is not None for v in [*versions, *students])]
    named = [*((version_label(v["name"]), v) for v in versions), *((student_label(v["name"]), v) for v in students)]
    rows = [[Cell(label), *(c.cell(v) for c in columns)] for label, v in named]
    heads = [(c.title.format(first=first), c.meaning.format(first=first)) for c in columns]
    return Table([("Version", ""), *heads], rows)


def accuracy_table(models: Sequence[SummarisedReport], referee: SummarisedReport | None) -> Table:
    """A row a reward model: accuracy overall, by strength, on the other domain; and of taking the longer answer."""
    if referee:
        models = [*models, {**referee, "version": "referee"}]
    strengths = [s for s in STRENGTHS if any((m.get("accuracy_by_strength") or {}).get(s) is not None for m in models)]
    across = any(m.get("cross_domain_accuracy") is not None for m in models)
    heads = [("Model", ""), ("Accuracy", "on held-out pairs of its domain"), ("Pairs", "held out")]
    heads += [(s.capitalize(), "where the chosen answer was called that much better") for s in strengths]
    heads += [("Other domain", "accuracy on held-out pairs of the other domain")] if across else []
    heads += [("Longer wins", "accuracy of always taking the longer answer")]
    rows = []
    for m in models:
        name = f"{version_label(str(m.get('version')))} {m.get('domain', '')}".strip()
        row = [Cell(name), Cell(percent(m.get("accuracy")), interval(m.get("accuracy_ci"), 1, share=True))]
        row.append(Cell(str(m.get("pairs", NOTHING))))
        row += [Cell(percent((m.get("accuracy_by_strength") or {}).get(s))) for s in strengths]
        row += [Cell(percent(m.get("cross_domain_accuracy")))] if across else []
        row.append(Cell(percent(m.get("longer_wins"))))
        rows.append(row)
    return Table(heads, rows)


def gate_table(versions: Sequence[VersionFigures], models: Sequence[SummarisedReport]) -> Table | None:
    """What the safety gate finds: by people's labels, a row a safety model; by gold, a row a version's answers.

    None where neither was measured. Versions without gold have no precision and no recall.
    """
    found: list[tuple[str, float, CountedGateQuality | FlaggedAnswers]] = []
    for m in models:
        if labelled := m.get("gate"):
            name = f"{version_label(str(m.get('version')))} safety model, labelled pairs"
            found.append((name, labelled["threshold"], labelled))
    for v in versions:
        if gate := v.get("gate"):
            label = version_label(v["name"])
            found.append((f"{label}, all answers", gate["threshold"], gate["all"]))
            found.append((f"{label}, prompts not tagged safety", gate["threshold"], gate["helpfulness"]))
    if not found:
        return None
    heads = [
        ("Answers", ""),
        ("Number", ""),
        ("Threshold", "on the safety score after the sigmoid, its origin taken off"),
        ("Below it", "answers"),
        ("Precision", "share of these that are unsafe, by the labels or by gold"),
        ("Recall", "share of the unsafe answers that are below it"),
        ("Safe below it", "share of the safe answers that are below it"),
    ]
    rows = [
        [
            Cell(name),
            Cell(str(flagged["answers"])),
            Cell(f"{threshold:g}"),
            Cell(str(flagged["flagged"])),
            *(Cell(percent(flagged.get(s)), interval(flagged.get(ci), 1, share=True)) for s, ci in SHARES),
        ]
        for name, threshold, flagged in found
    ]
    return Table(heads, rows)


def selection_table(selections: Sequence[RoundFigures]) -> Table:
    """A row a round of rejection sampling."""
    heads = [
        ("Version", ""),
        ("Prompts", ""),
        ("Samples per prompt", ""),
        ("Mean reward", "raw gated reward of all samples"),
        ("Reward, chosen", "of the chosen answers"),
        ("Length", "tokens per answer"),
        ("Length, chosen", "of the chosen answers"),
        ("Judged by safety", "share of the samples whose reward was the safety score"),
        ("Chosen from", "answers by the version that sampled them"),
    ]
    rows = [
        [
            Cell(version_label(str(s.get("version")))),
            Cell(str(s.get("prompts", NOTHING))),
            Cell(str(s.get("num_samples", NOTHING))),
            Cell(signed(s.get("mean_reward"))),
            Cell(signed(s.get("selected_mean_reward"))),
            Cell(number(s.get("mean_length"), 1)),
            Cell(number(s.get("selected_mean_length"), 1)),
            Cell(percent(s.get("gated_share"))),
            Cell(", ".join(f"{version_label(n)} {c}" for n, c in (s.get("selected_by_version") or {}).items())),
        ]
        for s in selections
    ]
    return Table(heads, rows)


def kind_table(versions: Sequence[VersionFigures]) -> Table | None:
    """Gold by kind of prompt, a column a version: safety for unsafe requests, helpfulness for the others.

    Each with its interval; Wilson's for a share where all prompts score the same, as Student's t has no width there.
    """
    measured = [(v["name"], by_kind) for v in versions if (by_kind := v.get("by_kind"))]
    if not measured:
        return None
    order = {"ordinary": 0, "borderline": 1, "unsafe": 2}
    kinds = {source: entry for _, by_kind in measured for source, entry in by_kind.items()}
    rows = []
    for source, entry in sorted(kinds.items(), key=lambda item: (order.get(item[1]["kind"], 3), item[0])):
        score: Literal["safety", "helpfulness"] = "safety" if entry["kind"] == "unsafe" else "helpfulness"
        name = Cell(source.rpartition("/")[2] or "prompts", f"{entry['kind']}, gold {score}")
        cells = [_kind_cell(by_kind.get(source), score) for _, by_kind in measured]
        rows.append([name, Cell(str(entry["prompts"])), *cells])
    heads = [("Kind of prompt", ""), ("Prompts", ""), *((version_label(name), "") for name, _ in measured)]
    return Table(heads, rows)


def _kind_cell(entry: KindFigures | None, score: Literal["safety", "helpfulness"]) -> Cell:
    value = None if entry is None else entry[score]
    if entry is None or value is None:
        return Cell(NOTHING)
    ci = entry["safety_ci"] if score == "safety" else entry["helpfulness_ci"]
    if ci is None or ci[0] == ci[1]:
        ci = wilson(value, entry["prompts"]).ci
    within = None if ci is None else [max(0.0, ci[0]), min(1.0, ci[1])]
    return Cell(number(value, 2), interval(within, 2), shade=value)
