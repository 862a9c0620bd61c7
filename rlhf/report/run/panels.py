"""Which figures a run gets: from its files to panels. Each function leaves out what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import STRENGTHS
from rlhf.intervals import wilson
from rlhf.report.drawing.bars import stacked
from rlhf.report.drawing.curves import doublings, kl_panel
from rlhf.report.drawing.distributions import ridges
from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, Panel, Series, lines, ramp
from rlhf.report.drawing.planes import Point, plane, scatter
from rlhf.report.drawing.text import first_label, percent, version_label
from rlhf.rewards.gate_quality import SHARES

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import VersionFigures
    from rlhf.rejection.figures import RoundFigures
    from rlhf.report.run.tables import Figure, Interval
    from rlhf.rewards.gate_quality import FlaggedQuality
    from rlhf.rewards.training.accuracy import SummarisedReport

Row = Mapping[str, Any]
MOST_POINTS = 500


def version_panels(versions: Sequence[VersionFigures]) -> list[Panel]:
    """Gold scores or the referee's, what goes wrong, win rate, reward, KL and length, each by version."""
    names = [version_label(v["name"]) for v in versions]
    first = first_label([v["name"] for v in versions])
    x = range(len(versions))
    has_gold = any(v.get("gold_helpfulness") is not None for v in versions)
    by_models = "by the reward models that trained it"

    def of(label: str, colour: str, key: Figure, ci: Interval, dashed: bool = False) -> Series:
        return Series(label, colour, x, [v.get(key) for v in versions], [v.get(ci) for v in versions], dashed)

    def since_first(label: str, key: Figure, ci: Interval) -> Series:
        y = _from_first(versions, lambda v: v.get(key))
        return Series(label, INK, x, y, [v.get(ci) for v in versions])

    panels = [
        lines(
            "Gold scores",
            [
                of("helpfulness", BLUE, "gold_helpfulness", "gold_helpfulness_ci"),
                of("safety", ORANGE, "gold_safety", "gold_safety_ci"),
            ],
            names=names,
            note="By the scorer that knows the truth, 0 to 1.",
        ),
        _plane(versions),
        lines(
            "Referee's score",
            [of("referee", INK, "referee_score", "referee_ci")],
            names=names,
            note="A reward model that trains nothing, of pairs that no other model has learnt from; raw score.",
        ),
        lines(
            "What goes wrong",
            [
                of("violations", ORANGE, "violation_rate", "violation_ci"),
                of("false refusals", BLUE, "false_refusal_rate", "false_refusal_ci"),
            ],
            names=names,
            percent=True,
            note="Of unsafe requests fulfilled; of other requests refused.",
        ),
        lines(
            f"Wins against {first}",
            [
                of("by gold", BLUE, "win_rate_vs_sft", "win_rate_ci"),
                of(by_models, GREY, "proxy_win_rate_vs_sft", "proxy_win_rate_ci", dashed=True),
            ][0 if has_gold else 1 :],
            names=names,
            percent=True,
            reference=0.5,
            note="Ties count half." if has_gold else f"{by_models.capitalize()}; ties count half.",
        ),
        lines(
            f"Reward over {first}",
            [since_first("reward", "proxy_reward_gain", "proxy_reward_gain_ci")],
            names=names,
            note=f"Mean gated reward less that of {first}, {by_models}.",
        ),
        lines(
            f"Distance from {first}",
            [since_first("KL", "kl_from_sft", "kl_from_sft_ci")],
            names=names,
            note=f"KL from {first} in nats per answer.",
        ),
        lines(
            "Length",
            [of("tokens", INK, "mean_length", "mean_length_ci")],
            names=names,
            note="Tokens per answer. A gain in reward is often length.",
        ),
    ]
    return _found(panels)


def _plane(versions: Sequence[VersionFigures]) -> Panel | None:
    """Where the versions stand on both axes (paper, figure 11): gold scores, else wins by the prompts' domain."""
    gold = _points(
        (v, v.get("gold_helpfulness"), v.get("gold_safety"), v.get("gold_helpfulness_ci"), v.get("gold_safety_ci"))
        for v in versions
    )
    wins = _points(
        (
            v,
            v.get("win_rate_helpfulness"),
            v.get("win_rate_safety"),
            v.get("win_rate_helpfulness_ci"),
            v.get("win_rate_safety_ci"),
        )
        for v in versions
    )
    what = "gold score" if gold else "wins"
    first = first_label([v["name"] for v in versions])
    note = "By the scorer that knows the truth" if gold else f"Wins against {first} on either domain's prompts"
    return plane(
        "Helpfulness and safety",
        gold or wins,
        x_label=f"helpfulness, {what}",
        y_label=f"safety, {what}",
        percent=not gold,
        even=None if gold else 0.5,
        note=f"{note}, numbered from version to version. Where crosses overlap, the step may be chance.",
    )


def _points(
    figures: Iterable[tuple[VersionFigures, float | None, float | None, list[float] | None, list[float] | None]],
) -> list[Point]:
    return [
        Point(version_label(v["name"]), x, y, x_ci, y_ci)
        for v, x, y, x_ci, y_ci in figures
        if x is not None and y is not None
    ]


def _from_first(
    versions: Sequence[VersionFigures], value: Callable[[VersionFigures], float | None]
) -> list[float | None]:
    """Each version's value, and 0 for the first one itself where another version has one."""
    values = [value(v) for v in versions]
    known = any(v is not None for v in values)
    return [0.0 if known and v is versions[0] else own for v, own in zip(versions, values, strict=True)]


def _found(panels: Sequence[Panel | None]) -> list[Panel]:
    return [panel for panel in panels if panel is not None]


def accuracy_panels(models: Sequence[SummarisedReport]) -> list[Panel]:
    """Accuracy by strength, a panel a domain and a line a version; none where no strengths are known."""
    panels = []
    for domain in ("helpfulness", "safety"):
        own = [m for m in models if m.get("domain") == domain and m.get("accuracy_by_strength")]
        series = [
            Series(
                version_label(str(m.get("version"))),
                ramp(i + 1, len(own) + 1),
                range(len(STRENGTHS)),
                [m["accuracy_by_strength"].get(s) for s in STRENGTHS],
                [_strength_ci(m, s) for s in STRENGTHS],
            )
            for i, m in enumerate(own)
        ]
        note = "Share of held-out pairs where the chosen answer scores higher."
        names = ["signif.", "better", "slightly", "negligibly"]
        panels.append(
            lines(f"{domain.capitalize()} model", series, names=names, percent=True, reference=0.5, note=note)
        )
    return _found(panels)


def _strength_ci(model: SummarisedReport, strength: str) -> Sequence[float] | None:
    accuracy = model["accuracy_by_strength"].get(strength)
    pairs = (model.get("pairs_by_strength") or {}).get(strength)
    return wilson(accuracy, pairs).ci if accuracy is not None and pairs else None


def selection_panels(selections: Sequence[RoundFigures]) -> list[Panel]:
    """Reward curves, a panel a version: best, median and mean of k samples against k; and what the best costs in KL."""
    panels = []
    for s in selections:
        curve = doublings(s.get("curve") or [])
        ks = [point["k"] for point in curve]
        mean = s.get("mean_reward")
        series = [
            Series("best of k", BLUE, ks, [p.get("max") for p in curve], [p.get("max_ci") for p in curve]),
            Series(
                "median of k",
                GREY,
                ks,
                [p.get("median") for p in curve],
                [p.get("median_ci") for p in curve],
                dashed=True,
            ),
            Series("mean", ORANGE, ks, [mean] * len(ks), dashed=True, markers=False),
        ]
        label = version_label(str(s.get("version")))
        note = f"Temperature {s['temperature']:g}." if isinstance(s.get("temperature"), (int, float)) else ""
        panels.append(
            lines(f"Reward of {label}'s samples", series, log2=True, x_label="samples per prompt, k", note=note)
        )
    curves = {version_label(str(s.get("version"))): s.get("curve") or [] for s in selections}
    return _found([*panels, kl_panel(curves), _origin_panel(selections)])


def _origin_panel(selections: Sequence[RoundFigures]) -> Panel | None:
    """Which versions' answers each round chose (paper, section 3.2.3); None where every round chose its own alone."""
    rounds = {str(s.get("version")): s.get("selected_by_version") or {} for s in selections}
    known = {name for counts in rounds.values() for name in counts}
    versions = [name for name in rounds if name in known] + sorted(known - rounds.keys())
    if len(versions) < 2:
        return None
    last, counts = list(rounds.items())[-1]
    return stacked(
        "Where the chosen answers come from",
        [(version_label(name), [own.get(of, 0) for of in versions]) for name, own in rounds.items()],
        [(f"by {version_label(name)}", ramp(i + 1, len(versions) + 1)) for i, name in enumerate(versions)],
        note=f"All chosen answers, by the version that wrote them: {counts.get(last, 0)} of {version_label(last)}'s "
        f"{sum(counts.values())} are its own, the others came from the pool of earlier versions.",
    )


def reliability_panels(models: Sequence[SummarisedReport]) -> list[Panel]:
    """How often a model is right by how sure it is, a panel a domain and a line a version."""
    panels = []
    for domain in ("helpfulness", "safety"):
        own = [
            (version_label(str(m.get("version"))), found)
            for m in models
            if m.get("domain") == domain
            if (found := m.get("reliability"))
        ]
        if not own:
            continue
        series = [Series("as it says", GREY, [0.5, 1], [0.5, 1], dashed=True, markers=False)]
        series += [
            Series(
                label,
                ramp(i + 1, len(own) + 1),
                [p["confidence"] for p in found["curve"]],
                [p["accuracy"] for p in found["curve"]],
                [p["ci"] for p in found["curve"]],
            )
            for i, (label, found) in enumerate(own)
        ]
        last, found = own[-1]
        note = (
            f"Below the dashed line a model is surer than it is right. {last}: {percent(found['ece'])} off on average, "
            f"over {sum(p['pairs'] for p in found['curve'])} held-out pairs."
        )
        panels.append(
            lines(
                f"{domain.capitalize()} model's calibration",
                series,
                x_label="confidence, σ(|difference|)",
                y_label="accuracy",
                percent=True,
                note=note,
            )
        )
    return _found(panels)


def gate_panels(versions: Sequence[VersionFigures], models: Sequence[SummarisedReport]) -> list[Panel]:
    """Precision and recall of the safety gate by version: on pairs that people labelled, and by gold on all answers."""
    labelled = [
        (version_label(str(m.get("version"))), g["threshold"], g, g["answers"]) for m in models if (g := m.get("gate"))
    ]
    judged = [
        (version_label(v["name"]), found["threshold"], found["all"], found["all"]["answers"])
        for v in versions
        if (found := v.get("gate"))
    ]
    panels = [
        _gate("The gate on labelled pairs", "people's labels on held-out pairs", labelled),
        _gate("The gate on the versions' answers", "gold", judged),
    ]
    if all(panels) and {at for _, at, _, _ in labelled} != {at for _, at, _, _ in judged}:
        apart = " The gate's other chart is at another threshold: the two do not compare."
        return [replace(panel, note=panel.note + apart) for panel in _found(panels)]
    return _found(panels)


def _gate(title: str, truth: str, found: Sequence[tuple[str, float, FlaggedQuality, int]]) -> Panel | None:
    if not found:
        return None
    series = [
        Series(
            name,
            colour,
            range(len(found)),
            [f.get(name) for _, _, f, _ in found],
            [f.get(ci) for _, _, f, _ in found],
        )
        for (name, ci), colour in zip(SHARES[:2], (BLUE, ORANGE), strict=True)
    ]
    last, _, flagged, answers = found[-1]
    if len({at for _, at, _, _ in found}) == 1:
        known = f"{found[-1][1]:g}"
        title += f", threshold {known}"
    else:
        known = ", ".join(f"{at:g} at {label}" for label, at, _, _ in found)
    return lines(
        title,
        series,
        names=[label for label, _, _, _ in found],
        percent=True,
        from_zero=True,
        note=f"It flags answers whose safety score lies below its threshold, {known}. By {truth}: of the flagged "
        f"answers the unsafe share (precision), of the unsafe answers the flagged share (recall). At {last} it flags "
        f"{flagged['flagged']} of {answers} answers; the fewer there are, the wider is the interval.",
    )


def distribution_panels(answers: Mapping[str, Sequence[Row]]) -> list[Panel]:
    """The first version's scores and each one's, by the latter's reward models; safety on prompts of that domain."""
    panels = []
    for score in ("helpfulness", "safety"):
        rows = []
        for name, all_rows in answers.items():
            own = [r for r in all_rows if r.get(score) is not None and r.get("domain") == score]
            sft = [v for r in own if (v := (r.get("sft") or {}).get(score)) is not None]
            rows.append((version_label(name), sft, [r[score] for r in own]))
        note = f"Raw, on prompts of the domain {score}."
        before = first_label(list(answers))
        panels.append(ridges(f"{score.capitalize()} model's scores", rows, before, x_label="score", note=note))
    return _found(panels)


def change_panels(answers: Mapping[str, Sequence[Row]]) -> list[Panel]:
    """Each prompt's score before (the first version) and after (the last one) by the last version's reward models."""
    if len(answers) < 2:
        return []
    last = list(answers)[-1]
    panels = []
    for score in ("helpfulness", "safety"):
        groups = []
        for domain, colour in (("helpfulness", BLUE), ("safety", ORANGE)):
            pairs = [
                ((r.get("sft") or {}).get(score), r.get(score))
                for r in answers[last]
                if r.get("domain") == domain and r.get("index", 0) == 0
            ]
            known = [(b, a) for b, a in pairs if b is not None and a is not None][:MOST_POINTS]
            groups.append((f"{domain} prompts", colour, [b for b, _ in known], [a for _, a in known]))
        panels.append(
            scatter(
                f"{score.capitalize()} model's scores, before and after",
                groups,
                x_label=first_label(list(answers)),
                y_label=version_label(last),
                note="One point a prompt; above the dashed line the score rose.",
            )
        )
    return _found(panels)
