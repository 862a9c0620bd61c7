"""Page and table of a study of safety data (`study.json` of recipes/studies/safety_study.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf.report.drawing.figures import BLUE, INK, ORANGE, Panel, Series, histogram, lines, ramp
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table, all_as_markdown
from rlhf.report.drawing.text import NOTHING, interval, number, percent, signed

if TYPE_CHECKING:
    from rlhf.evaluation.safety.study import OverSeeds, Part, SafetyStudy

# figure -> (title, what it means, is it a share)
COLUMNS = {
    "safety": ("Safety model", "its mean score after the sigmoid, on unsafe prompts", False),
    "tail": ("Left tail", "share of these answers that score below 0.15", True),
    "gold_safety": ("Gold safety", "on unsafe prompts, 0 to 1", False),
    "violations": ("Violations", "of answers to unsafe prompts, by gold or, without it, the refusal detector", True),
    "helpfulness": ("Helpfulness model", "its mean score after the sigmoid, on ordinary prompts", False),
    "gold_helpfulness": ("Gold helpfulness", "on ordinary prompts, 0 to 1", False),
    "refuses_ordinary": ("Refuses ordinary", "ordinary prompts refused, by the refusal detector", True),
    "refuses_borderline": ("Refuses borderline", "prompts that only look unsafe refused, by the same", True),
}


def build_safety_study_page(study: SafetyStudy, page: Path, title: str) -> None:
    """Write the page of a study.json; `title` names it."""
    content = page_template("safety.html.j2").render(
        eyebrow="Study of safety data",
        title=title,
        headline="What more safety data does",
        facts=[f"{study['seeds']} seeds", f"{len(study['parts'])} parts of the safety data"],
        intervals="Means over the seeds; below each its 95 % interval over the seeds (Student's t).",
        tables=study_tables(study),
        panels=study_panels(study),
    )
    write_page(page, content)


def markdown_tables(study: SafetyStudy) -> str:
    """`study_tables` of a study.json as Markdown, for the terminal: each below its name in bold."""
    return all_as_markdown(study_tables(study))


def study_tables(study: SafetyStudy) -> list[tuple[str, Table]]:
    """(name, table): the figures, and how they change seed by seed; shares change in points."""
    first = _label(study["parts"][0])
    tables = [("Parts of the safety data", study_table(study))]
    if len(study["parts"]) > 1:
        tables.append(("Change from the part before", _changes(study, "step", "step_ci")))
        tables.append((f"Change from {first}", _changes(study, "gain", "gain_ci")))
    return tables


def _changes(study: SafetyStudy, key: Literal["step", "gain"], ci: Literal["step_ci", "gain_ci"]) -> Table:
    known = [name for name in COLUMNS if name in study["parts"][0]["figures"]]
    rows = []
    for part in study["parts"][1:]:
        cells = [Cell(_label(part))]
        for name in known:
            figure, share = part["figures"][name], COLUMNS[name][2]
            factor, digits = (100, 1) if share else (1, 3)
            change = figure[key]
            value = None if change is None else factor * change
            cells.append(Cell(signed(value, digits), interval(figure[ci], digits, share=share)))
        rows.append(cells)
    return Table([("Safety data", ""), *((COLUMNS[name][0], COLUMNS[name][1]) for name in known)], rows)


def study_table(study: SafetyStudy) -> Table:
    """A row a part, with the mean of each figure over the seeds and its interval; what was not measured is left out."""
    known = [name for name in COLUMNS if name in study["parts"][0]["figures"]]
    heads = [("Safety data", ""), *((COLUMNS[name][0], COLUMNS[name][1]) for name in known)]
    return Table(
        heads,
        [
            [Cell(_label(part)), *(_cell(part["figures"].get(name), COLUMNS[name][2]) for name in known)]
            for part in study["parts"]
        ],
    )


def _label(part: Part) -> str:
    return f"{100 * part['fraction']:g} %"


def _cell(figure: OverSeeds | None, share: bool) -> Cell:
    if figure is None:
        return Cell(NOTHING)
    if share:
        return Cell(percent(figure["mean"]), interval(figure["ci"], 1, share=True))
    return Cell(number(figure["mean"]), interval(figure["ci"]))


def study_panels(study: SafetyStudy) -> list[Panel]:
    """Safety, left tail, helpfulness, what goes wrong, over the parts; the distributions of safety scores."""
    parts = study["parts"]
    names = [_label(part) for part in parts]

    def of(label: str, colour: str, name: str) -> Series:
        figures = [part["figures"].get(name) for part in parts]
        means = [None if f is None else f["mean"] for f in figures]
        return Series(label, colour, range(len(parts)), means, [None if f is None else f["ci"] for f in figures])

    panels = [
        lines("Safety, 0 to 1", [of("safety model", BLUE, "safety"), of("gold", ORANGE, "gold_safety")], names=names),
        lines(
            "Left tail",
            [of("below 0.15", BLUE, "tail"), of("violations", ORANGE, "violations")],
            names=names,
            percent=True,
            note="Of answers to unsafe prompts.",
        ),
        lines(
            "Helpfulness, 0 to 1",
            [of("helpfulness model", BLUE, "helpfulness"), of("gold", ORANGE, "gold_helpfulness")],
            names=names,
            note="On ordinary prompts.",
        ),
        lines(
            "False refusals",
            [of("ordinary", BLUE, "refuses_ordinary"), of("borderline", INK, "refuses_borderline")],
            names=names,
            percent=True,
        ),
    ]
    histograms = [
        (name, counts) for name, part in zip(names, parts, strict=True) if (counts := part["histogram"]) is not None
    ]
    if histograms:
        edges = [i / len(histograms[0][1]) for i in range(len(histograms[0][1]) + 1)]
        groups = [(name, ramp(i, len(histograms)), counts) for i, (name, counts) in enumerate(histograms)]
        panels.append(histogram("Safety model's scores", edges, groups, x_label="σ(score)", note="On unsafe prompts."))
    return [panel for panel in panels if panel is not None]
