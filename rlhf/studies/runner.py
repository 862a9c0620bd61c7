"""What every study does: its trainings one after another, each kept, and figures gathered over the seeds.

Every training is a stage folder of its own, so that a killed study goes on where it was. Light: no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from rlhf.configuration import to_dict
from rlhf.errors import InputError
from rlhf.intervals import mean_interval
from rlhf.stage import KeepingConfig, digest, inputs_of, options_of, read_stage_file, write_json
from rlhf.terminal import note


@dataclass(frozen=True, kw_only=True)
class StudyConfig(KeepingConfig):
    """What the config of every study has. In its paths {run} stands for the seed's run folder.

    Args:
        runs: run folders that {run} stands for, taken in turn: with runs [a, b] and seeds [0, 1, 2, 3] a has 0 and 2.
        seeds: of everything that a training draws.
    """

    runs: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        require_named(runs=self.runs, seeds=self.seeds)
        require_different(seeds=self.seeds)
        if len(self.seeds) % len(self.runs):
            raise InputError(f"runs: {len(self.runs)} cannot share {len(self.seeds)} seeds evenly; name another seed")

    @property
    def of_each_training(self) -> dict[str, Any]:
        """What every stage has, but for the folder, as the study was told it."""
        return {field.name: getattr(self, field.name) for field in fields(KeepingConfig) if field.name != "output"}

    @property
    def folders(self) -> list[tuple[int, str]]:
        """Each seed and its run folder."""
        return [(seed, self.runs[number % len(self.runs)]) for number, seed in enumerate(self.seeds)]


def require_named(**fields: Any) -> None:
    """Raise InputError at the first field that holds nothing."""
    for name, value in fields.items():
        if not value:
            raise InputError(f"{name}: must name at least one")


def require_different(**fields: Sequence[Any]) -> None:
    """Raise InputError at the first field that holds a value twice."""
    for name, values in fields.items():
        if len(set(values)) < len(values):
            raise InputError(f"{name}: must differ from each other, got {list(values)}")


@dataclass(frozen=True, kw_only=True)
class StudyRun(KeepingConfig):
    """One training of a study: on a `fraction` of the rows, with this seed. No {run} is left in its paths."""

    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.output.name


Run = TypeVar("Run", bound=StudyRun)


def is_finished(run: StudyRun) -> bool:
    """Whether the run's folder holds its figures.

    Raises:
        InputError: it holds those of other settings or other files.
    """
    folder = run.output
    record = read_stage_file(folder)
    if record is None:
        return False
    decisive = {name.partition(".")[0] for name in options_of(run, {})[0]}
    changed = [n for n, value in to_dict(run).items() if n in decisive and record["config"].get(n) != value]
    digests = {name: entry["digest"] for name, entry in record["inputs"].items()}
    changed += [name for name, path in inputs_of(run).items() if digests.get(name) != digest(path)]
    if changed:
        raise InputError(f"output: {folder} was made with another {changed[0]}; remove it, or name another --output")
    return True


def unfinished(runs: Sequence[Run]) -> list[Run]:
    """Those that are still to run.

    Raises:
        InputError: an input of one is missing (named before any is read), or `is_finished` refuses one.
    """
    for run in runs:
        inputs_of(run)
    return [run for run in runs if not is_finished(run)]


def run_each(runs: Sequence[Run], train: Callable[[Run], None]) -> None:
    """Train one after another, and say which it is."""
    for number, run in enumerate(runs, start=1):
        note(f"[{number}/{len(runs)}] {run.name}")
        train(run)


def write_study(
    output: Path,
    gather: Callable[[], Any],
    build_page: Callable[[Any, Path, str], None],
    tables: Callable[[Any], str],
) -> None:
    """Write study.json and index.html, and print the tables in Markdown: the main process alone."""
    if os.environ.get("RANK", "0") != "0":
        return
    study = gather()
    write_json(output / "study.json", study)
    build_page(study, output / "index.html", output.name)
    print(tables(study))


def over_seeds(values: Sequence[float], **others: Sequence[float] | None) -> dict[str, Any]:
    """{"mean", "ci", "values"} of one value a seed, with Student's 95 % interval.

    Args:
        others: name -> the values, seed by seed, of what these are compared with; adds {name, name_ci} of the paired
            difference, None where there is nothing to compare with.
    """
    mean = mean_interval(values)
    found: dict[str, Any] = {"mean": mean and mean.mean, "ci": mean and mean.ci, "values": list(values)}
    for name, other in others.items():
        gain = None if other is None else mean_interval([v - o for v, o in zip(values, other, strict=True)])
        found |= {name: gain and gain.mean, f"{name}_ci": gain and gain.ci}
    return found
