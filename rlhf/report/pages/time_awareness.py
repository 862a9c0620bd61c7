"""Answers at the right date as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf.report.drawing.tables import Cell, Table, as_markdown
from rlhf.report.drawing.text import NOTHING, interval, percent, signed

if TYPE_CHECKING:
    from rlhf.evaluation.instructions.time_awareness import TimeFigures


def time_table(rows: Sequence[TimeFigures]) -> str:
    """A line a policy and group, a column a period: the share of right answers; the gain over the first policy."""
    periods = list(dict.fromkeys(row["period"] for row in rows))
    heads = ["policy, questions", *periods, "gain over the first", "facts", "runs"]
    lines = []
    for policy, group in dict.fromkeys((row["policy"], row["group"]) for row in rows):
        own = {row["period"]: row for row in rows if (row["policy"], row["group"]) == (policy, group)}
        whole = own["all"]
        gain = NOTHING if whole["gain"] is None else f"{signed(100 * whole['gain'], 1)} points"
        runs = [percent(share, 0) for share in whole["by_run"].values()]
        lines.append(
            [
                Cell(f"{policy}, {group}"),
                *(_share(own.get(period)) for period in periods),
                Cell(gain, interval(whole["gain_ci"], 1, share=True)),
                Cell(str(whole["facts"])),
                Cell(", ".join(runs)),
            ]
        )
    return as_markdown(Table([(head, "") for head in heads], lines))


def _share(row: TimeFigures | None) -> Cell:
    return Cell(NOTHING) if row is None else Cell(percent(row["right"]), interval(row["ci"], 1, share=True))
