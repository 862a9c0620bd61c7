"""Page and tables of a sweep of the safety gate's threshold (`gate_sweep.json`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.report.drawing.figures import BLUE, GREY, ORANGE, Panel, Series, lines
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.planes import scatter
from rlhf.report.drawing.tables import Cell, Table, all_as_markdown
from rlhf.report.drawing.text import interval, number, percent
from rlhf.rewards.gate_quality import SHARES

if TYPE_CHECKING:
    from rlhf.evaluation.reward_models.gate_sweep import GateSweep

MOST_POINTS = 1500


def build_gate_page(figures: GateSweep, page: Path, title: str) -> None:
    """Write the page of a gate_sweep.json; `title` names it."""
    counts = {name: own["answers"] for name, own in figures["tension"].items()}
    content = page_template("safety.html.j2").render(
        eyebrow="Safety gate",
        title=title,
        headline="What the gate's threshold does",
        facts=[
            f"{counts['safe']} safe answers",
            f"{counts['unsafe']} unsafe answers",
            f"chosen: {figures['chosen']['threshold']:g} (asked for precision {percent(figures['precision'])})",
        ],
        intervals="Below a figure stands its 95 % interval over answers: Student's t for a mean, Wilson's for a share.",
        tables=gate_tables(figures),
        panels=gate_panels(figures),
    )
    write_page(page, content)


def markdown_tables(figures: GateSweep) -> str:
    """`gate_tables` of a gate_sweep.json as Markdown, for the terminal: each below its name in bold."""
    return all_as_markdown(gate_tables(figures))


def gate_tables(figures: GateSweep) -> list[tuple[str, Table]]:
    """(name, table): a row a threshold; both scores of safe and unsafe answers."""
    sweep = Table(
        [
            ("Threshold", "on the safety score after the sigmoid"),
            ("Below it", "answers"),
            ("Precision", "share of these that are unsafe"),
            ("Recall", "share of the unsafe answers that are below it"),
            ("Safe below it", "share of the safe answers that are below it"),
        ],
        [
            [
                Cell(f"{row['threshold']:g}" + (", chosen" if row == figures["chosen"] else "")),
                Cell(str(row["flagged"])),
                *(Cell(percent(row[name]), interval(row[ci], 1, share=True)) for name, ci in SHARES),
            ]
            for row in figures["sweep"]
        ],
    )
    scores = Table(
        [
            ("Answers", ""),
            ("Number", ""),
            ("Helpfulness model", "mean score after the sigmoid"),
            ("Safety model", "the same"),
            ("Correlation", "Pearson's, of the two"),
        ],
        [
            [
                Cell(name),
                Cell(str(own["answers"])),
                *(Cell(number(s["mean"]), interval(s["ci"])) for s in (own["helpfulness"], own["safety"])),
                Cell(number(own["correlation"], 2)),
            ]
            for name, own in figures["tension"].items()
        ],
    )
    return [("Thresholds", sweep), ("Both scores", scores)]


def gate_panels(figures: GateSweep) -> list[Panel]:
    """Precision and recall over the threshold, and a scatter of both scores for safe and for unsafe answers."""
    sweep = figures["sweep"]
    x = [row["threshold"] for row in sweep]
    drawn = {"precision": ("precision", BLUE), "recall": ("recall", ORANGE), "safe_flagged": ("safe below", GREY)}
    series = [Series(*drawn[name], x, [row[name] for row in sweep], [row[ci] for row in sweep]) for name, ci in SHARES]
    panels = [lines("Unsafe answers found", series, x_label="threshold", percent=True)]
    for name, colour, wanted in (("safe", BLUE, False), ("unsafe", ORANGE, True)):
        points = [point for point in figures["points"] if point["unsafe"] == wanted][:MOST_POINTS]
        xs, ys = [point["safety"] for point in points], [point["helpfulness"] for point in points]
        labels = {"x_label": "σ(safety)", "y_label": "σ(helpfulness)"}
        panels.append(scatter(f"{name.capitalize()} answers", [(name, colour, xs, ys)], **labels, diagonal=False))
    return [panel for panel in panels if panel is not None]
