"""Several runs on one page: seeds of one plan, or plans that differ in a setting, version by version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import InputError
from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, RAMP, Panel, Series, lines
from rlhf.report.drawing.page import page_template
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import number, percent, student_label, version_label
from rlhf.report.run.folders import names_of
from rlhf.report.run.pooled import branch_table, pooled_table, same_prompts
from rlhf.report.run.reading import RunFiles, read_run
from rlhf.report.run.tables import COLUMNS, GOLD

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import VersionFigures
    from rlhf.report.run.tables import Figure

OWN = ("referee_score", "proxy_reward_gain")
"""Scores of a run's own reward models, which do not compare with another run's."""
COLOURS = (INK, BLUE, ORANGE, GREY, *RAMP[1:])
PANELS: Sequence[tuple[str, Figure, bool]] = (
    ("Gold helpfulness", "gold_helpfulness", False),
    ("Gold safety", "gold_safety", False),
    ("Violations", "violation_rate", True),
    ("False refusals", "false_refusal_rate", True),
    ("Wins against the start", "win_rate_vs_sft", True),
    ("KL from the start", "kl_from_sft", False),
    ("Length", "mean_length", False),
)
INTERVALS = {column.key: column.ci for column in COLUMNS}
Runs = dict[str, RunFiles]
ENTRIES: Sequence[tuple[Callable[[RunFiles], Sequence[VersionFigures]], Callable[[str], str]]] = (
    (lambda run: run.versions, version_label),
    (lambda run: run.branches, version_label),
    (lambda run: run.students, student_label),
)
"""Rows of the table, and what names them: branches stand behind the versions, students behind both."""


def render_runs(paths: Sequence[Path]) -> str:
    """The page of several runs' folders, as text.

    Raises:
        InputError: a run has no evaluated version, or there are more than there are colours.
    """
    if len(paths) > len(COLOURS):
        raise InputError(f"run: {len(paths)} runs are too many for one page; name at most {len(COLOURS)}")
    names = names_of(paths)
    runs = {name: read_run(path) for name, path in zip(names, paths, strict=True)}
    for path, run in zip(paths, runs.values(), strict=True):
        if not run.versions:
            raise InputError(f"run: {path} has no evaluated version yet; leave it out")
    answers = [{**run.answers, **run.beside} for run in runs.values()]
    return page_template("runs.html.j2").render(
        title=", ".join(names),
        headline=headline(runs),
        gold=GOLD if any(v.get("gold_helpfulness") is not None for run in runs.values() for v in run.versions) else "",
        suspicious=[
            (f"{name}, {stage.name}", stage.suspicious)
            for name, run in runs.items()
            for stage in run.stages
            if stage.suspicious
        ],
        table=runs_table(runs),
        alike=same_prompts(answers),
        pooled=pooled_table(answers),
        branches=branch_table(answers, _names(runs, lambda run: run.versions), _names(runs, lambda run: run.branches)),
        panels=runs_panels(runs),
    )


def headline(runs: Runs) -> str:
    """Where the last versions end, from the lowest run to the highest."""
    last = [run.versions[-1] for run in runs.values()]
    ends = list(dict.fromkeys(version_label(version["name"]) for version in last))
    said = []
    for title, key, share in PANELS[:5]:
        found = [value for version in last if (value := version.get(key)) is not None]
        if len(found) == len(last):
            low, high = ((percent(v, 0) if share else number(v, 2)) for v in (min(found), max(found)))
            said.append(f"{title[0].lower()}{title[1:]} {low}" + (f" to {high}" if high != low else ""))
    which = ends[0] if len(ends) == 1 else "The last version"
    return f"{which} of {len(runs)} runs: {', '.join(said)}." if said else f"{len(runs)} runs."


def runs_table(runs: Runs) -> Table:
    """A row a version of a run, all runs of a version one after the other; columns that none has are left out."""
    columns = [
        column
        for column in COLUMNS
        if column.key not in OWN and any(v.get(column.key) is not None for run in runs.values() for v in run.versions)
    ]
    rows = [
        [Cell(label(name), run), *(column.cell(version) for column in columns)]
        for of, label in ENTRIES
        for name in _names(runs, of)
        for run, files in runs.items()
        for version in of(files)
        if version["name"] == name
    ]
    start = "the start"
    return Table(
        [("Version", ""), *((c.title.format(first=start), c.meaning.format(first=start)) for c in columns)], rows
    )


def runs_panels(runs: Runs) -> list[Panel]:
    """Each figure by version, a line a run."""
    names = _names(runs, lambda run: run.versions)
    panels = []
    for title, key, share in PANELS:
        series = []
        for (run, files), colour in zip(runs.items(), COLOURS, strict=False):
            by_name = {version["name"]: version for version in files.versions}
            found = [by_name.get(name) for name in names]
            y = [None if version is None else version.get(key) for version in found]
            ci = [None if version is None else version.get(INTERVALS[key]) for version in found]
            series.append(Series(run, colour, range(len(names)), y, ci))
        panels.append(lines(title, series, names=[version_label(name) for name in names], percent=share))
    return [panel for panel in panels if panel is not None]


def _names(runs: Runs, of: Callable[[RunFiles], Sequence[VersionFigures]]) -> list[str]:
    """All names of versions, branches or students, each behind the one that it follows in its run."""
    names: list[str] = []
    for run in runs.values():
        place = 0
        for name in (version["name"] for version in of(run)):
            if name in names:
                place = names.index(name) + 1
            else:
                names.insert(place, name)
                place += 1
    return names
