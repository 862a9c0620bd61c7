"""What a version gains over the start, or over a control, on the same prompts: the mean over the seeds of one plan."""

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
    """Three rows a policy that every run has: its lead over the start's answers, at equal length, and finished ones'.

    The prompt is the unit: a prompt's leads are averaged over the runs, which are taken as they are; below each mean
    stand the runs' own. None where the runs were not measured on the same prompts, or nothing leads anything. The third
    row is left out where no answer was cut off.

    Args:
        runs: of each, name of a policy -> rows of its answers.jsonl, the start's first.
    """
    first = next(iter(runs[0]), "")
    return _table(runs, [(name, first) for name in runs[0] if name != first], "Over the start")


def branch_table(
    runs: Sequence[Mapping[str, Sequence[Row]]], versions: Sequence[str], branches: Sequence[str]
) -> Table | None:
    """The same of each version over its branches: what choosing by reward is worth beyond what a control has too.

    Args:
        runs: as of `pooled_table`, branches among the policies.
        versions, branches: their names; v1_random is a branch of v1.
    """
    pairs = []
    for branch in branches:
        own = [version for version in versions if branch.startswith(f"{version}_")]
        pairs += [(max(own, key=len), branch)] if own else []
    return _table(runs, pairs, "Over a branch")


def _table(runs: Sequence[Mapping[str, Sequence[Row]]], pairs: Sequence[tuple[str, str]], title: str) -> Table | None:
    if not same_prompts(runs):
        return None
    first = next(iter(runs[0]))
    compared = []
    for name, other in pairs:
        if all(run.get(name) and run.get(other) for run in runs):
            label = version_label(name) + ("" if other == first else f" over {version_label(other)}")
            both = [(run[name], run[other]) for run in runs]
            own = [_leads(rows, theirs, judged=other == first) for rows, theirs in both]
            ends = [_leads(_finished(rows), _finished(theirs), judged=other == first) for rows, theirs in both]
            compared.append((label, own, ends if any(_cut(rows) for pair in both for rows in pair) else []))
    known = [score for score in SCORES if any(_pooled(own, score) for _, own, _ in compared)]
    if not known:
        return None
    several = "mean of the runs; interval over the prompts; each run's own mean behind it"
    heads = [
        (title, several if len(runs) > 1 else "interval over the prompts"),
        *(SCORES[score] for score in known),
        ("Tokens", "per answer"),
    ]
    rows = []
    for label, own, ends in compared:
        lengths = _pooled(own, "length")
        mean, level = [Cell(label)], [Cell(f"{label}, equal length")]
        for score in known:
            gains = _pooled(own, score)
            mean.append(_cell(mean_interval(list(gains.values())), own, score))
            level.append(_cell(intercept_interval([lengths[prompt] for prompt in gains], list(gains.values()))))
        rows += [[*mean, _cell(mean_interval(list(lengths.values())), own, "length", 1)], [*level, Cell(NOTHING)]]
        if ends:
            of_ends = [_cell(mean_interval(list(_pooled(ends, score).values())), ends, score) for score in known]
            rows.append([Cell(f"{label}, finished answers"), *of_ends, Cell(NOTHING)])
    return Table(heads, rows)


def _finished(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("finished", True)]


def _cut(rows: Sequence[Row]) -> bool:
    return len(_finished(rows)) < len(rows)


def same_prompts(runs: Sequence[Mapping[str, Sequence[Row]]]) -> bool:
    """Whether all runs have answers to the same prompts."""
    asked = [{row["prompt_id"]: row["messages"] for row in next(iter(run.values()), [])} for run in runs]
    return all(asked) and all(one == asked[0] for one in asked)


Leads = dict[str, dict[str, float]]
"""Score, or length -> prompt -> mean lead over its answers in one run."""


def _leads(rows: Sequence[Row], others: Sequence[Row], *, judged: bool) -> Leads:
    """Each answer against the other of the same index.

    judged: the others are the start's, whose scores by the judges of `rows` are the `sft` in these.
    """
    theirs = {(row["prompt_id"], row["index"]): row for row in others}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        other = theirs.get((row["prompt_id"], row["index"]))
        if other is None:
            continue
        by_own = (row.get("sft") or {}) if judged else {}
        other = {**other, **{name: value for name, value in by_own.items() if value is not None}}
        for score, field in (*FIELDS.items(), ("length", "length")):
            if row.get(field) is not None and other.get(field) is not None:
                found.setdefault(score, {}).setdefault(row["prompt_id"], []).append(row[field] - other[field])
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
    own = ", ".join(signed(fmean(run[score].values()), digits) for run in runs if run.get(score) and len(runs) > 1)
    between = interval(found.ci, digits)
    return Cell(signed(found.mean, digits), f"{between}; {own}" if own else between)
