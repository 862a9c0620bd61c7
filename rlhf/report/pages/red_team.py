"""The red team's table: a round a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import interval, number, percent

HEADS = ("Round", "People", "Prompts", "Violations", "Per prompt", "Hours", "Per person and hour")


def round_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Of `rlhf.evaluation.safety.red_team.round_figures`."""
    rows = [
        [
            *(Cell(str(row[name])) for name in ("round", "people", "prompts", "violations")),
            Cell(percent(row["rate"]), interval(row["ci"], 1, share=True)),
            Cell(number(row["hours"], 2)),
            Cell(number(row["per_person_hour"], 2)),
        ]
        for row in rounds
    ]
    return Table([(head, "") for head in HEADS], rows)
