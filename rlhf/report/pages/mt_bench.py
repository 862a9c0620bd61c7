"""Figures, page and table of `recipes/evaluation/mt_bench.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf.evaluation.benchmarks.mt_bench import TURNS, mean_figure
from rlhf.evaluation.benchmarks.text_metrics import distributions, readability
from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, RAMP, Panel, Series, lines
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import interval, number
from rlhf.report.judgements.judges import judges_table
from rlhf.rewards.pair_judge import divided, judge_agreements

Figures = Mapping[str, Mapping[str, Any]]
COLOURS = (BLUE, ORANGE, INK, GREY, *RAMP[1:])
NAMES = {"single": "Rating", "pairwise": "Win rate"}


def mt_bench_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """model -> overall (mean of a question's two turns), turn_1, turn_2, categories, readability of its answers, and
    judges: overall and turns by each judge alone.

    Args:
        rows: of judgements.jsonl, question by question and turn by turn; figure is a rating or a win (1, 0.5, 0).
    """
    figures = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        categories = list(dict.fromkeys(row["category"] for row in own))
        figures[model] = {
            **_judged(own),
            "categories": {c: mean_figure(_by_question([r for r in own if r["category"] == c])) for c in categories},
            "readability": distributions(readability(row["answer"] for row in own)),
            "judges": {j: _judged([{**r, "figure": r["judges"][j]["figure"]} for r in own]) for j in _judges(own)},
        }
    return figures


def judge_agreement(rows: Sequence[Mapping[str, Any]], mode: str) -> dict[str, Any]:
    """How far several judges agree about the same answers.

    Of mode pairwise {"divided", "agreement"}: `rlhf.rewards.pair_judge.divided` and `judge_agreements` over the rows of
    judgements.jsonl. Of mode single {"agreement"}, of each two judges {"judges", "answers", "same": how often they give
    the same rating, "mean_difference": between their ratings, in points}. "agreement" is empty with one judge.
    """
    figures = {j: [row["judges"][j]["figure"] for row in rows] for j in _judges(rows)}
    if mode == "pairwise":
        return {"divided": divided(figures), "agreement": judge_agreements(figures)}
    found = []
    for one, other in combinations(figures, 2):
        both = [(a, b) for a, b in zip(figures[one], figures[other], strict=True) if None not in (a, b)]
        distance = fmean(abs(a - b) for a, b in both) if both else None
        same = sum(a == b for a, b in both)
        found.append({"judges": [one, other], "answers": len(both), "same": same, "mean_difference": distance})
    return {"agreement": found}


def _judges(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(rows[0]["judges"]) if rows else []


def _judged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    turns = [[row["figure"] for row in rows if row["turn"] == turn + 1] for turn in range(TURNS)]
    by_turn = {f"turn_{turn + 1}": mean_figure(values) for turn, values in enumerate(turns)}
    return {"overall": mean_figure(_by_question(rows))} | by_turn


def _by_question(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Mean over a question's turns: they are not independent. None where a turn's judgement could not be read."""
    values: dict[int, list[float | None]] = {}
    for row in rows:
        values.setdefault(row["id"], []).append(row["figure"])
    known = [[value for value in some if value is not None] for some in values.values()]
    return [sum(some) / len(some) if len(some) == TURNS else None for some in known]


def mt_bench_table(figures: Figures, mode: str) -> Table:
    """A row a model: both turns, each, how many judgements could not be read, readability; below it, where there are
    several judges, a row for each."""
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
        read = [Cell(number(row["readability"][k]["mean"], 1)) for k in ("reading_ease", "grade", "words")]
        rows.append([Cell(model), *_judged_cells(row, digits), *read])
        if len(row["judges"]) > 1:
            for judge, own in row["judges"].items():
                rows.append([Cell(f"{model}, by {judge}"), *_judged_cells(own, digits), *[Cell("")] * len(read)])
    return Table(heads, rows)


def _judged_cells(row: Mapping[str, Any], digits: int) -> list[Cell]:
    means = [row[name] for name in ("overall", "turn_1", "turn_2")]
    cells = [Cell(number(found["mean"], digits), interval(found["ci"], digits)) for found in means]
    return [*cells, Cell(str(row["overall"]["unreadable"]))]


def agreement_table(agreement: Mapping[str, Any], mode: str) -> Table | None:
    """A row for each two judges; None where one judges alone."""
    if not agreement["agreement"]:
        return None
    if mode == "single":
        heads = [
            ("Judges", ""),
            ("Answers", "that both rated"),
            ("Same rating", ""),
            ("Points apart", "mean distance of the two ratings"),
        ]
        rows = []
        for own in agreement["agreement"]:
            counts = [Cell(str(own["answers"])), Cell(str(own["same"])), Cell(number(own["mean_difference"], 2))]
            rows.append([Cell(" and ".join(own["judges"])), *counts])
        return Table(heads, rows)
    return judges_table(agreement["agreement"])


def build_mt_bench_page(
    figures: Figures, agreement: Mapping[str, Any], page: Path, title: str, mode: str, baseline: str | None
) -> None:
    """Write the page: the table, a line a model over the categories, and how far several judges agree."""
    name = NAMES[mode] + (f" against {baseline}" if mode == "pairwise" else "")
    between = agreement_table(agreement, mode)
    parts = [(name, mt_bench_table(figures, mode), _panels(figures, name))]
    parts += [] if between is None else [("How far the judges agree", between, [])]
    content = page_template("parts.html.j2").render(
        title=title,
        eyebrow="MT-Bench",
        intro="Means over the questions; below each its 95 % interval (Student's t). "
        + (
            "A judge rates from 1 to 10; of several the mean counts."
            if mode == "single"
            else "Ties, and verdicts that the order changes, count half; of several judges the majority counts."
        ),
        models=list(figures),
        parts=parts,
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
