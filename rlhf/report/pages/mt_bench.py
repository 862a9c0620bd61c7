"""Figures, page and table of `recipes/evaluation/mt_bench.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.evaluation.benchmarks.mt_bench import TURNS, mean_figure
from rlhf.evaluation.benchmarks.text_metrics import distributions, readability
from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, RAMP, Panel, Series, lines
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import interval, number

Figures = Mapping[str, Mapping[str, Any]]
COLOURS = (BLUE, ORANGE, INK, GREY, *RAMP[1:])
NAMES = {"single": "Rating", "pairwise": "Win rate"}


def mt_bench_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """model -> overall (mean of a question's two turns), turn_1, turn_2, categories, readability of its answers.

    Args:
        rows: of judgements.jsonl, question by question and turn by turn; figure is a rating or a win (1, 0.5, 0).
    """
    figures = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        turns = [[row["figure"] for row in own if row["turn"] == turn + 1] for turn in range(TURNS)]
        categories = list(dict.fromkeys(row["category"] for row in own))
        figures[model] = {
            "overall": mean_figure(_by_question(own)),
            **{f"turn_{turn + 1}": mean_figure(values) for turn, values in enumerate(turns)},
            "categories": {c: mean_figure(_by_question([r for r in own if r["category"] == c])) for c in categories},
            "readability": distributions(readability(row["answer"] for row in own)),
        }
    return figures


def _by_question(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Mean over a question's turns: they are not independent. None where a turn's judgement could not be read."""
    values: dict[int, list[float | None]] = {}
    for row in rows:
        values.setdefault(row["id"], []).append(row["figure"])
    known = [[value for value in some if value is not None] for some in values.values()]
    return [sum(some) / len(some) if len(some) == TURNS else None for some in known]


def mt_bench_table(figures: Figures, mode: str) -> Table:
    """A row a model: both turns, each, how many judgements could not be read, readability."""
    name, digits = NAMES[mode], 2 if mode == "single" else 3
    heads = [
        ("", ""),
        (name, "mean over the questions of their two turns"),
        ("Turn 1", "of the first answers"),
        ("Turn 2", "of the second answers"),
        ("Unreadable", "questions without a figure, as a judgement of theirs held no rating or verdict"),
        ("Reading ease", "Flesch, of the answers; higher is easier"),
        ("Grade", "Flesch-Kincaid"),
        ("Words", "of an answer"),
    ]
    rows = []
    for model, row in figures.items():
        judged = [
            Cell(number(row[k]["mean"], digits), interval(row[k]["ci"], digits))
            for k in ("overall", "turn_1", "turn_2")
        ]
        read = [Cell(number(row["readability"][k]["mean"], 1)) for k in ("reading_ease", "grade", "words")]
        rows.append([Cell(model), *judged, Cell(str(row["overall"]["unreadable"])), *read])
    return Table(heads, rows)


def build_mt_bench_page(figures: Figures, page: Path, title: str, mode: str, baseline: str | None) -> None:
    """Write the page: the table, and a line a model over the categories."""
    name = NAMES[mode] + (f" against {baseline}" if mode == "pairwise" else "")
    content = page_template("parts.html.j2").render(
        title=title,
        eyebrow="MT-Bench",
        intro="Means over the questions; below each its 95 % interval (Student's t). "
        + (
            "The judge rates from 1 to 10."
            if mode == "single"
            else "Ties, and verdicts that the order changes, count half."
        ),
        models=list(figures),
        parts=[(name, mt_bench_table(figures, mode), _panels(figures, name))],
    )
    write_page(page, content)


def _panels(figures: Figures, name: str) -> list[Panel]:
    categories = list(dict.fromkeys(c for row in figures.values() for c in row["categories"]))
    series = []
    for place, (model, row) in enumerate(figures.items()):
        parts = [row["categories"].get(c, {"mean": None, "ci": None}) for c in categories]
        y, ci = [part["mean"] for part in parts], [part["ci"] for part in parts]
        series.append(Series(model, COLOURS[place % len(COLOURS)], range(len(categories)), y, ci))
    panel = lines(f"{name} by category", series, names=categories)
    return [panel] if panel is not None else []
