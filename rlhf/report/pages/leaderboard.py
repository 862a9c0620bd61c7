"""The table of `recipes/evaluation/leaderboard.py`, as in table 1 of the QLoRA report: per cent, the mean first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from rlhf.evaluation.benchmarks.leaderboard import TASKS, TaskScore
from rlhf.intervals import Z95
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import number


def leaderboard_table(scores: Mapping[str, Mapping[str, TaskScore]]) -> Table:
    """name -> task -> score, all models on the same tasks; after each score half its 95 % interval (1.96 errors)."""
    tasks = list(next(iter(scores.values())))
    heads = [("Model", ""), ("Average", "mean of the tasks"), *((TASKS[t].title, TASKS[t].metric) for t in tasks)]
    rows = []
    for name, row in scores.items():
        errors = [row[task].standard_error for task in tasks]
        known = [error for error in errors if error is not None]
        error = math.hypot(*known) / len(tasks) if len(known) == len(tasks) else None
        mean = _cell(fmean(row[task].score for task in tasks), error)
        rows.append([Cell(name), mean, *(_cell(row[task].score, row[task].standard_error) for task in tasks)])
    return Table(heads, rows)


def _cell(score: float, error: float | None) -> Cell:
    return Cell(number(100 * score, 2), "" if error is None else f"± {number(100 * Z95 * error, 2)}")
