"""`summary.json`: a run's figures, collected from its stages' files; machine-readable, and what the report draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from rlhf.errors import InputError
from rlhf.iteration.figures import RewardModelFigures, Summary, Version
from rlhf.iteration.ledger import read_ledger, suspicious_lines, wall_seconds
from rlhf.iteration.links import clear_links, make_link
from rlhf.iteration.plan import PlannedStage, make_plan
from rlhf.jsonl import is_stream, read_json
from rlhf.stage import write_json

FIGURES = tuple(Version.__annotations__)
RECORD = "config.yaml"
"""Of a run's folder: the resolved config of the driver that works in it."""


def summarise(run: Path, stages: Sequence[PlannedStage]) -> Summary:
    """Collect what the finished stages of a run measured.

    Every version has the keys of FIGURES (null where not measured), then what else its evaluation wrote. Unfinished
    stages are left out.
    """
    records = read_ledger(run / "ledger.jsonl")
    found = [(stage, _read(stage.output / "evaluation.json")) for stage in stages]
    measured = [
        (bool(stage.student), bool(stage.branch), cast(Version, dict.fromkeys(FIGURES) | figures))
        for stage, figures in found
        if figures is not None
    ]
    accuracies = [(stage, _read(stage.output / "accuracy.json")) for stage in stages]
    models = [(stage, accuracy) for stage, accuracy in accuracies if accuracy is not None]
    summary: Summary = {
        "seconds": wall_seconds(records),
        "versions": [figures for of_student, of_branch, figures in measured if not (of_student or of_branch)],
        "reward_models": [
            _reward_model(stage.version, accuracy) for stage, accuracy in models if stage.step != "referee"
        ],
        "suspicious": {stage.name: lines for stage in stages if (lines := suspicious_lines(stage.output))},
    }
    if branches := [figures for _, of_branch, figures in measured if of_branch]:
        summary["branches"] = branches
    if students := [figures for of_student, _, figures in measured if of_student]:
        summary["students"] = students
    for stage, accuracy in models:
        if stage.step == "referee":
            summary["referee"] = _reward_model(None, accuracy)
    return summary


def write_summary(run: Path, stages: Sequence[PlannedStage]) -> Path:
    """Write summary.json, and gather every version's completions in the run's pool folder."""
    made = [(stage.version, stage.output / "completions.parquet") for stage in stages if not stage.branch]
    answers = {f"{version}.parquet": completions for version, completions in made if completions.exists()}
    clear_links(run / "pool", answers)
    for name, completions in answers.items():
        make_link(run / "pool" / name, completions)
    path = run / "summary.json"
    write_json(path, summarise(run, stages))
    return path


def recorded_plan(run: Path) -> list[PlannedStage]:
    """The stages of the config that the driver recorded, where the run lies now. InputError where it cannot be read."""
    from rlhf.configuration import parse_config
    from rlhf.iteration.config import IterativeConfig

    try:
        return make_plan(replace(parse_config(IterativeConfig, recorded_options(run)), run=run, launch={}))
    except InputError:
        raise
    except (OSError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"run: {run / RECORD}: {error}") from error


def recorded_options(run: Path) -> list[str]:
    """The driver's options that it recorded in a run's folder. InputError where they cannot be read."""
    file = run / RECORD
    if is_stream(file):
        raise InputError(f"run: {file} is a pipe or a device")
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))["config"]
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    except (OSError, AttributeError, LookupError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"run: {file}: {error}") from error
    return [part for name, text in texts.items() for part in (f"--{name}", text)]


def read_summary(run: Path) -> Summary:
    """What `write_summary` wrote. InputError where there is none, or it cannot be read."""
    path = run / "summary.json"
    if not path.exists():
        raise InputError(f"run: {path} does not exist; the run writes it when its last stage is finished")
    try:
        summary = read_json(path)
        if isinstance(summary, dict) and _are_versions(summary.get("versions")):
            return cast(Summary, summary)
    except ValueError:
        pass
    raise InputError(f"run: {path} is no summary of a run; rlhf run, with the run's options, writes it again")


def _are_versions(versions: Any) -> bool:
    """Whether they are a list of objects with a name and, where the table has them, numbers, intervals or nothing."""
    return isinstance(versions, list) and all(
        isinstance(version, dict)
        and isinstance(version.get("name"), str)
        and all(_is_figure(figure, version.get(figure)) for figure in FIGURES if figure != "name")
        for version in versions
    )


def _is_figure(name: str, value: Any) -> bool:
    numbers = value if isinstance(value, list) and name.endswith("_ci") and len(value) == 2 else [value]
    return value is None or all(isinstance(number, int | float) for number in numbers)


def _reward_model(version: str | None, accuracy: dict[str, Any]) -> RewardModelFigures:
    """One entry of "reward_models": accuracies by strength as plain numbers, their pairs and intervals beside them."""
    by_strength = accuracy.get("accuracy_by_strength") or {}
    entry: RewardModelFigures = {
        "version": version,
        "domain": accuracy["domain"],
        "accuracy": accuracy["accuracy"],
        "accuracy_by_strength": {strength: cell["accuracy"] for strength, cell in by_strength.items()},
        "pairs": accuracy["pairs"],
        "pairs_by_strength": {strength: cell["pairs"] for strength, cell in by_strength.items()},
    }
    others = {name: value for name, value in accuracy.items() if name not in entry}
    return cast(RewardModelFigures, {**entry, **others})


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
