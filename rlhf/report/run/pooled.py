"""Seeds of one plan pooled: what a version gains over the start on the same prompts, the mean over the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlhf.evaluation.policies.gains import SCORES as FIELDS
from rlhf.intervals import Interval, intercept_interval, mean_interval
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import NOTHING, interval, signed, version_label
from rlhf.report.run.gains import SCORES

Row = Mapping[str, Any]


def pooled_table(runs: Sequence[Mapping[str, Sequence[Row]]]) -> Table | None:
    """Two rows a policy that every run has: its mean lead over the start's answers, and what that is at equal length.

    The prompt is the unit: a prompt's leads are averaged over the runs, which are taken as they are; below each mean
    stand the runs' own. None where the runs were not measured on the same prompts, or nothing leads anything.

    Args:
        runs: of each, name of a policy -> rows of its answers.jsonl, the start's first.
    """
    if not same_prompts(runs):
        return None
    first = next(iter(runs[0]))
    names = [name for name in runs[0] if name != first and all(run.get(name) for run in runs)]
    leads = {name: [_leads(run[name], next(iter(run.values()))) for run in runs] for name in names}
    known = [score for score in SCORES if any(_pooled(own, score) for own in leads.values())]
    if not known:
        return None
    heads = [
        ("Over the start", "mean of the runs; interval over the prompts; each run's own mean behind it"),
        *(SCORES[score] for score in known),
        ("Tokens", "per answer"),
    ]
    rows = []
    for name, own in leads.items():
        lengths = _pooled(own, "length")
        mean, level = [Cell(version_label(name))], [Cell(f"{version_label(name)}, equal length")]
        for score in known:
            gains = _pooled(own, score)
            mean.append(_cell(mean_interval(list(gains.values())), own, score))
            level.append(_cell(intercept_interval([lengths[prompt] for prompt in gains], list(gains.values()))))
        rows += [[*mean, _cell(mean_interval(list(lengths.values())), own, "length", 1)], [*level, Cell(NOTHING)]]
    return Table(heads, rows)


def same_prompts(runs: Sequence[Mapping[str, Sequence[Row]]]) -> bool:
    """Whether all runs have answers to the same prompts."""
    asked = [{row["prompt_id"]: row["messages"] for row in next(iter(run.values()), [])} for run in runs]
    return all(asked) and all(one == asked[0] for one in asked)


Leads = dict[str, dict[str, float]]
"""Score, or length -> prompt -> mean lead over its answers in one run."""


def _leads(rows: Sequence[Row], start: Sequence[Row]) -> Leads:
    """Each answer against the start's of the same index; scored by the judges of `rows`, as `sft` in them says."""
    theirs = {(row["prompt_id"], row["index"]): row for row in start}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        other = theirs.get((row["prompt_id"], row["index"]))
        if other is None:
            continue
        judged = {**other, **{name: value for name, value in (row.get("sft") or {}).items() if value is not None}}
        for score, field in (*FIELDS.items(), ("length", "length")):
            if row.get(field) is not None and judged.get(field) is not None:
                found.setdefault(score, {}).setdefault(row["prompt_id"], []).append(row[field] - judged[field])
    return {score: {prompt: fmean(own) for prompt, own in by.items()} for score, by in found.items()}


def _pooled(runs: Sequence[Leads], score: str) -> dict[str, float]:
    """Prompt -> mean lead over the runs that have one."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for prompt, lead in run.get(score, {}).items():
            found.setdefault(prompt, []).append(lead)
    return {prompt: fmean(own) for prompt, own in found.items()}


def _cell(found: Interval | None, runs: Sequence[Leads] = (), score: str = "", digits: int = 2) -> Cell:
    if found is None:
        return Cell(NOTHING)
    own = ", ".join(signed(fmean(run[score].values()), digits) for run in runs if run.get(score))
    between = interval(found.ci, digits)
    return Cell(signed(found.mean, digits), f"{between}; {own}" if own else between)
