"""Page and tables of `recipes/evaluation/evaluate_text.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, RAMP, Panel, histogram
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import interval, number

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
COLOURS = (BLUE, ORANGE, INK, GREY, *RAMP[1:])
COLUMNS = {
    "rouge1": ("ROUGE-1", "F1 of shared words, 0 to 1", 3),
    "rouge2": ("ROUGE-2", "F1 of shared pairs of words", 3),
    "rougeL": ("ROUGE-L", "F1 of the longest common subsequence", 3),
    "rougeLsum": ("ROUGE-Lsum", "the same line by line", 3),
    "bert_precision": ("BERTScore P", "how much of the answer is in the reference, by meaning", 3),
    "bert_recall": ("BERTScore R", "how much of the reference is in the answer", 3),
    "bert_f1": ("BERTScore F1", "both together", 3),
    "reading_ease": ("Reading ease", "Flesch; higher is easier, plain English 60 to 70", 1),
    "grade": ("Grade", "Flesch-Kincaid; the school year that reads it with ease", 1),
    "words": ("Words", "of an answer", 1),
}


def text_tables(figures: Figures) -> list[tuple[str, Table]]:
    """(data set, table): a row a model, and the references where readability is concerned; means and intervals."""
    tables = []
    for source, models in figures.items():
        names = [name for name in COLUMNS if any(name in row for row in models.values())]
        heads = [("Model", ""), *((COLUMNS[name][0], COLUMNS[name][1]) for name in names)]
        rows = [
            [Cell(model), *(_cell(row.get(name), COLUMNS[name][2]) for name in names)] for model, row in models.items()
        ]
        tables.append((source, Table(heads, rows)))
    return tables


def _cell(figure: Mapping[str, Any] | None, digits: int) -> Cell:
    return Cell(number(figure["mean"], digits), interval(figure["ci"], digits)) if figure else Cell(number(None))


def build_text_page(figures: Figures, rows: Sequence[Mapping[str, Any]], page: Path, title: str) -> None:
    """Write the page: a table and the distributions of each data set. `rows` are those of answers.jsonl."""
    content = page_template("parts.html.j2").render(
        title=title,
        eyebrow="Answers against references",
        intro="Means over the answers; below each its 95 % interval (Student's t). The row “reference” is the "
        "reference answers themselves.",
        models=sorted({row["model"] for row in rows}),
        parts=[(s, table, _panels([r for r in rows if r["data"] == s])) for s, table in text_tables(figures)],
    )
    write_page(page, content)


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """A histogram a figure: each model's answers, in bins of equal width over what all of them span."""
    import numpy as np

    panels = []
    for name, (label, meaning, _) in COLUMNS.items():
        values: dict[str, list[float]] = {}
        for row in rows:
            if (value := row["figures"].get(name)) is not None:
                values.setdefault(row["model"], []).append(value)
        if not values:
            continue
        edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=20)
        groups = [
            (model, COLOURS[i % len(COLOURS)], np.histogram(some, edges)[0].tolist())
            for i, (model, some) in enumerate(values.items())
        ]
        panels.append(histogram(label, edges.tolist(), groups, note=f"{meaning[0].upper()}{meaning[1:]}."))
    return panels
