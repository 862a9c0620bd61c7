"""The tables of a run: versions, reward models, the gate, selections, kinds of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.rows import STRENGTHS
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import NOTHING, first_label, interval, number, percent, signed, version_label

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Column:
    title: str
    meaning: str
    key: str
    cell: Callable[[Row], Cell]


def _mean(key: str, ci: str, digits: int) -> Callable[[Row], Cell]:
    return lambda row: Cell(number(row.get(key), digits), interval(row.get(ci), digits))


def _share(key: str, ci: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(percent(row.get(key)), interval(row.get(ci), 1, share=True))


def _gain(key: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(NOTHING if row.get(key) is None else signed(row[key], 2), interval(row.get(f"{key}_ci"), 2))


_COLUMNS = [
    _Column(
        "Helpfulness",
        "gold helpfulness, 0 to 1, over ordinary and borderline prompts",
        "gold_helpfulness",
        _mean("gold_helpfulness", "gold_helpfulness_ci", 3),
    ),
    _Column(
        "Safety",
        "gold safety, 0 to 1, over the prompts of the domain safety",
        "gold_safety",
        _mean("gold_safety", "gold_safety_ci", 3),
    ),
    _Column(
        "Violations",
        "unsafe requests that were fulfilled",
        "violation_rate",
        _share("violation_rate", "violation_ci"),
    ),
    _Column(
        "False refusals",
        "ordinary and borderline requests that were refused",
        "false_refusal_rate",
        _share("false_refusal_rate", "false_refusal_ci"),
    ),
    _Column(
        "Wins against {first}",
        "share of comparisons with {first}'s answers to the same prompts that this version wins, ties half; by gold "
        "where there is gold, else by this version's reward models",
        "win_rate_vs_sft",
        _share("win_rate_vs_sft", "win_rate_ci"),
    ),
    *(
        _Column(
            f"Judge: {domain}",
            f"share of comparisons on prompts of domain {domain} that this version wins against the opponent, by the "
            "judge model asked in both orders; ties, and verdicts that the order decides, count half",
            f"judge_win_rate_{domain}",
            _share(f"judge_win_rate_{domain}", f"judge_win_rate_{domain}_ci"),
        )
        for domain in ("helpfulness", "safety")
    ),
    _Column(
        "Reward over {first}",
        "mean gated reward less that of {first}'s answers, both by this version's reward models; raw score",
        "proxy_reward_gain",
        _gain("proxy_reward_gain"),
    ),
    _Column(
        "Referee",
        "raw score of a reward model of other data, which no training has seen",
        "referee_score",
        _mean("referee_score", "referee_ci", 3),
    ),
    _Column(
        "KL from {first}",
        "nats per answer, from the answers' log-probabilities under both",
        "kl_from_sft",
        _mean("kl_from_sft", "kl_from_sft_ci", 2),
    ),
    _Column("Length", "tokens per answer", "mean_length", _mean("mean_length", "mean_length_ci", 1)),
]


def version_table(versions: Sequence[Row]) -> Table:
    """A row a version, the first one what the others are compared with; columns that no version has are left out."""
    first = first_label([v["name"] for v in versions])
    columns = [c for c in _COLUMNS if any(v.get(c.key) is not None for v in versions)]
    rows = [[Cell(version_label(v["name"])), *(c.cell(v) for c in columns)] for v in versions]
    heads = [(c.title.format(first=first), c.meaning.format(first=first)) for c in columns]
    return Table([("Version", ""), *heads], rows)


def accuracy_table(models: Sequence[Row], referee: Row | None) -> Table:
    """A row a reward model: accuracy overall, by strength, on the other domain; and of taking the longer answer."""
    models = [*models, *([dict(referee) | {"version": "referee"}] if referee else [])]
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


def gate_table(versions: Sequence[Row], models: Sequence[Row]) -> Table | None:
    """What the safety gate finds: by people's labels, a row a safety model; by gold, a row a version's answers.

    None where neither was measured. Versions without gold have no precision and no recall.
    """
    found = [
        (f"{version_label(str(m.get('version')))} safety model, labelled pairs", m["gate"])
        for m in models
        if m.get("gate")
    ]
    for v in versions:
        for which, name in (("all", "all answers"), ("helpfulness", "prompts not tagged safety")):
            if v.get("gate"):
                found.append((f"{version_label(v['name'])}, {name}", {**v["gate"], **v["gate"][which]}))
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
    shares = ("precision", "recall", "safe_flagged")
    rows = [
        [
            Cell(name),
            Cell(str(gate["answers"])),
            Cell(f"{gate['threshold']:g}"),
            Cell(str(gate["flagged"])),
            *(Cell(percent(gate.get(s)), interval(gate.get(f"{s}_ci"), 1, share=True)) for s in shares),
        ]
        for name, gate in found
    ]
    return Table(heads, rows)


def selection_table(selections: Sequence[Row]) -> Table:
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


def kind_table(versions: Sequence[Row]) -> Table | None:
    """Gold by kind of prompt, a column a version: safety for unsafe requests, helpfulness for the others."""
    measured = [v for v in versions if v.get("by_kind")]
    if not measured:
        return None
    order = {"ordinary": 0, "borderline": 1, "unsafe": 2}
    kinds = {source: entry for v in measured for source, entry in v["by_kind"].items()}
    rows = []
    for source, entry in sorted(kinds.items(), key=lambda item: (order.get(item[1].get("kind"), 3), item[0])):
        score = "safety" if entry.get("kind") == "unsafe" else "helpfulness"
        name = Cell(source.rpartition("/")[2] or "prompts", f"{entry.get('kind')}, {score}")
        values = [(v["by_kind"].get(source) or {}).get(score) for v in measured]
        rows.append([name, Cell(str(entry.get("prompts", ""))), *(Cell(number(x, 2), shade=x) for x in values)])
    heads = [("Kind of prompt", ""), ("Prompts", ""), *((version_label(v["name"]), "") for v in measured)]
    return Table(heads, rows)
