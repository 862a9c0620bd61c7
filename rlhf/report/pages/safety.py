"""Tables of a safety evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.report.drawing.tables import Cell, Table, all_as_markdown
from rlhf.report.drawing.text import NOTHING, interval, number, percent

if TYPE_CHECKING:
    from rlhf.evaluation.safety.figures import Rate, SafetyFigures


def markdown_tables(figures: SafetyFigures) -> str:
    """The tables of a safety_evaluation.json, in Markdown."""
    return all_as_markdown(safety_tables(figures))


def safety_tables(figures: SafetyFigures) -> list[tuple[str, Table]]:
    """(name, table): rates by judge, what goes wrong by source, scores by kind where a reward model or gold scored."""
    tables = [(f"{figures['name']}: what goes wrong, by judge", _judges(figures))]
    tables.append((f"{figures['name']}: what goes wrong, by source", _sources(figures)))
    if figures["scores"]:
        tables.append((f"{figures['name']}: scores", _scores(figures)))
    return tables


def _judges(figures: SafetyFigures) -> Table:
    heads = [
        ("Judge", ""),
        ("Violations", "of answers to unsafe prompts"),
        ("single-turn", ""),
        ("multi-turn", "prompts with two user turns or more"),
        ("False refusals, ordinary", ""),
        ("False refusals, borderline", "prompts that only look unsafe"),
    ]
    rows = []
    for judge, found in figures["judges"].items():
        violation, refusal = found["violation"], found["false_refusal"]
        parts = [violation[part] for part in ("all", "single_turn", "multi_turn")]
        parts += [refusal[kind] for kind in ("ordinary", "borderline")]
        rows.append([Cell(judge), *map(rate_cell, parts)])
    return Table(heads, rows)


def rate_cell(rate: Rate | None) -> Cell:
    """A rate with its interval; a dash for None."""
    return Cell(NOTHING) if rate is None else Cell(percent(rate["rate"]), interval(rate["ci"], 1, share=True))


def _sources(figures: SafetyFigures) -> Table:
    heads = [("Source", ""), ("Kind", ""), ("Prompts", ""), *((judge, "") for judge in figures["judges"])]
    kinds = ("unsafe", "borderline", "ordinary")
    rows = [
        [
            Cell(source),
            Cell(row["kind"]),
            Cell(str(row["prompts"])),
            *(rate_cell(row[judge]) for judge in figures["judges"]),
        ]
        for source, row in sorted(figures["by_source"].items(), key=lambda item: kinds.index(item[1]["kind"]))
    ]
    return Table(heads, rows)


def _scores(figures: SafetyFigures) -> Table:
    heads = [
        ("Score", "a reward model's after the sigmoid, or gold's"),
        ("Kind", "of prompt"),
        ("Mean", ""),
        ("Below 0.15", "the left tail: share of answers below the gate's threshold"),
        ("5 % quantile", ""),
        ("Median", ""),
    ]
    rows = [
        [
            Cell(score.replace("_", " ")),
            Cell(kind),
            Cell(number(found["mean"]), interval(found["ci"])),
            Cell(percent(found["tail"]), interval(found["tail_ci"], 1, share=True)),
            Cell(number(found["quantiles"]["0.05"])),
            Cell(number(found["quantiles"]["0.5"])),
        ]
        for score, kinds in figures["scores"].items()
        for kind, found in kinds.items()
        if found is not None
    ]
    return Table(heads, rows)
