"""What a run measured of its policies beside their evaluations: safety, instructions followed, knowledge kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.evaluation.benchmarks.leaderboard import TaskScore
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import interval, number, version_label
from rlhf.report.pages.instructions import instruction_table
from rlhf.report.pages.leaderboard import leaderboard_table
from rlhf.report.pages.rewards import accuracy_table
from rlhf.report.pages.safety import rate_cell
from rlhf.report.pages.text_metrics import text_tables
from rlhf.report.run.reading import Measured

Row = Mapping[str, Any]


def measured_tables(measured: Measured) -> list[tuple[str, Table]]:
    """(title, table), a row a policy; what nothing measured is left out."""
    found = []
    if measured.safety:
        found.append(("Violations and false refusals", safety_table(measured.safety)))
        found.append(("The same by source, refusal detector", source_table(measured.safety)))
    if measured.instructions:
        found.append(("Instructions that a rule can check", instruction_table(measured.instructions)))
    if measured.leaderboard:
        found.append(("Knowledge kept", _board(measured.leaderboard)))
    found += [(f"Answers against references: {source}", table) for source, table in _text_tables(measured.texts)]
    found += [
        (f"Merges of an adapter: {stage}", merge_table(merge["heldout"])) for stage, merge in measured.merges.items()
    ]
    return [*found, *(_benchmark_tables(measured.benchmarks))]


def reward_tables(measured: Measured) -> list[tuple[str, Table]]:
    """(stage, table): reward models beside what needs none, on both domains' held-out pairs."""
    return [
        (stage, accuracy_table(found, [group for group in found["test_pairs"] if group != "all"]))
        for stage, found in measured.rewards.items()
    ]


def safety_table(evaluations: Sequence[Row]) -> Table:
    """A row a policy and judge: what goes wrong with unsafe, ordinary and borderline prompts."""
    heads = [
        ("Version", ""),
        ("Judge", "the refusal detector calls a violation what answers an unsafe prompt without a refusal"),
        ("Violations", "of answers to unsafe prompts"),
        ("False refusals, ordinary", "of answers to ordinary prompts"),
        ("borderline", "of answers to prompts that only look unsafe"),
    ]
    rows = [
        [
            Cell(version_label(one["name"])),
            Cell(judge),
            rate_cell(found["violation"]["all"]),
            *(rate_cell(found["false_refusal"][kind]) for kind in ("ordinary", "borderline")),
        ]
        for one in evaluations
        for judge, found in one["judges"].items()
    ]
    return Table(heads, rows)


def source_table(evaluations: Sequence[Row]) -> Table:
    """A row a source of prompts, a column a policy, by the first judge."""
    judge = next(iter(evaluations[0]["judges"]))
    sources = {name: row for one in evaluations for name, row in one["by_source"].items()}
    heads = [("Source", ""), ("Kind", ""), ("Prompts", ""), *((version_label(e["name"]), "") for e in evaluations)]
    rows = [
        [
            Cell(name),
            Cell(row["kind"]),
            Cell(str(row["prompts"])),
            *(rate_cell(one["by_source"].get(name, {}).get(judge)) for one in evaluations),
        ]
        for name, row in sources.items()
    ]
    return Table(heads, rows)


def merge_table(heldout: Row) -> Table:
    """A row a model: what was trained, its base, and each merge, on the same held-out answers."""
    heads = [
        ("Model", "trained is the adapter over its base, as it was trained"),
        ("Loss", "nats per token of the held-out answers"),
        ("KL", "from what was trained, nats per token; the least is the closest"),
    ]
    names = [name for name in ("trained", "base", "careful", "simple") if name in heldout]
    rows = [[Cell(name), *(Cell(number(heldout[name][figure], 4)) for figure in ("loss", "kl"))] for name in names]
    return Table(heads, rows)


def _text_tables(texts: Mapping[str, Mapping[str, Row]]) -> list[tuple[str, Table]]:
    return text_tables(
        {source: {version_label(name): row for name, row in rows.items()} for source, rows in texts.items()}
    )


def _board(scores: Mapping[str, Mapping[str, Row]]) -> Table:
    """Those that were asked the same tasks as the first."""
    tasks = set(next(iter(scores.values())))
    same = {version_label(name): row for name, row in scores.items() if set(row) == tasks}
    return leaderboard_table(
        {name: {task: TaskScore(**one) for task, one in row.items()} for name, row in same.items()}
    )


def _benchmark_tables(benchmarks: Mapping[str, Row]) -> list[tuple[str, Table]]:
    """A table a benchmark of `recipes/evaluation/safety_benchmarks.py`: a row a stage, a column a figure."""
    names = dict.fromkeys(name for figures in benchmarks.values() for name in figures)
    found = []
    for name in names:
        rows = {stage: figures[name] for stage, figures in benchmarks.items() if name in figures}
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        cells = [
            [
                Cell(stage),
                *(Cell(number(row[c]["mean"]), interval(row[c]["ci"])) if c in row else Cell("–") for c in columns),
            ]
            for stage, row in rows.items()
        ]
        found.append((name, Table([("Stage", ""), *((column, "") for column in columns)], cells)))
    return found
