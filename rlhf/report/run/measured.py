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
    board = [("", _board(measured.leaderboard))] if measured.leaderboard else []
    if measured.texts:
        title = "Knowledge kept, and answers against references" if board else "Answers against references"
        found.append((title, side_by_side([*board, *_text_tables(measured.texts)])))
    elif board:
        found.append(("Knowledge kept", board[0][1]))
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


def side_by_side(tables: Sequence[tuple[str, Table]]) -> Table:
    """(what it is of, table) of the same policies as one; what one of them does not have is a dash.

    What a table is of stands behind the heads of its columns, where it is not empty.
    """
    names = dict.fromkeys(row[0].text for _, table in tables for row in table.rows)
    heads = [(f"{head}, {of}" if of else head, meaning) for of, table in tables for head, meaning in table.heads[1:]]
    rows = [[Cell(name)] for name in names]
    for _, table in tables:
        there = {cells[0].text: cells[1:] for cells in table.rows}
        for row in rows:
            row += there.get(row[0].text, [Cell("–")] * (len(table.heads) - 1))
    return Table([("Model", ""), *heads], rows)


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
