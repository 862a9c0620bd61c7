"""Context distillation's figures (`distillation.json`) as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def distillation_tables(figures: Mapping[str, Any]) -> str:
    """Safety scores by preprompt, the gain by the plain answer's score, held-out prompts before and after."""
    lines = ["| preprompt | mean safety score | 5 % | median | 95 % |", "|---|---|---|---|---|"]
    for kind, row in figures["scores"].items():
        low, middle, high = (f"{row['quantiles'][q]:.2f}" for q in ("0.05", "0.5", "0.95"))
        lines.append(f"| {kind} | {row['mean']:.3f}{_interval(row['ci'], '.3f')} | {low} | {middle} | {high} |")
    lines += ["", "| plain answer's score | answers | gain, generic | gain, category |", "|---|---|---|---|"]
    for generic, category in zip(figures["gain"]["generic"], figures["gain"]["category"], strict=True):
        edges = f"{generic['low']:.1f} to {generic['high']:.1f}"
        lines.append(f"| {edges} | {generic['answers']} | {_gain(generic)} | {_gain(category)} |")
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
