"""Context distillation's figures (`distillation.json`) as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "generic": "gain, generic",
    "category": "gain, category",
    "another": "gain of another plain answer",
}


def distillation_tables(figures: Mapping[str, Any]) -> str:
    """Safety scores by preprompt, the gain by the plain answer's score, held-out prompts before and after."""
    columns = "| preprompt | mean safety score | gain over plain, by prompt | 5 % | median | 95 % |"
    lines = [columns, "|---|---|---|---|---|---|"]
    for kind, row in figures["scores"].items():
        low, middle, high = (f"{row['quantiles'][q]:.2f}" for q in ("0.05", "0.5", "0.95"))
        gain = "–" if kind == "plain" else _gain({"gain": row["gain"], "ci": row["gain_ci"]})
        lines.append(
            f"| {kind} | {row['mean']:.3f}{_interval(row['ci'], '.3f')} | {gain} | {low} | {middle} | {high} |"
        )
    names = [NAMES[kind] for kind in figures["gain"]]
    lines += ["", f"| plain answer's score | answers | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for kinds in zip(*figures["gain"].values(), strict=True):
        edges = f"{kinds[0]['low']:.1f} to {kinds[0]['high']:.1f}"
        lines.append(f"| {edges} | {kinds[0]['answers']} | {' | '.join(_gain(row) for row in kinds)} |")
    lines += ["", f"kept {figures['kept']} of {figures['answers']} answers; trained on {figures['rows']} rows"]
    if figures["heldout"]:
        lines += ["", "| held-out | prompts | before | after | gain |", "|---|---|---|---|---|"]
    for row in figures["heldout"]:
        means = f"{row['before']:.3f} | {row['after']:.3f}"
        lines.append(f"| {row['figure']} | {row['prompts']} | {means} | {_gain(row)} |")
    return "\n".join(lines)


def _gain(row: Mapping[str, Any]) -> str:
    return "–" if row["gain"] is None else f"{row['gain']:+.3f}{_interval(row['ci'], '+.3f')}"


def _interval(ci: Sequence[float] | None, form: str) -> str:
    return "" if ci is None else f" ({ci[0]:{form}} to {ci[1]:{form}})"
