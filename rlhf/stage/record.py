"""What `stage.json` says of a finished stage: the shape that driver, model cards and studies read it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, cast

from rlhf.jsonl import read_json
from rlhf.stage.files import STAGE_FILE


class InputRecord(TypedDict):
    """One thing that the stage read: where it was, and the digest of its content."""

    path: str
    digest: str


class LaunchRecord(TypedDict):
    """How it was run: number of processes, and the precision that accelerate was told (null: by a stage without)."""

    processes: int
    mixed_precision: str | None


class ClosingRecord(TypedDict):
    """What the stage said at its end (`rlhf.stage.closing`).

    made: names in its folder, folders with a slash. rows_used: null where none are counted. left_out: reason -> rows.
    figures: the few that matter; a number that is not finite is null. suspicious: a sentence each.
    """

    made: list[str]
    rows_used: int | None
    left_out: dict[str, int]
    figures: dict[str, float | int | str | None]
    suspicious: list[str]


class StageRecord(TypedDict):
    """The content of `stage.json`.

    command: as given, with the interpreter's bare name. config: every option, plain. inputs: dotted field -> what was
    read. datasets: hub names of the rows behind it, those of the stages that made its rows too; younger than some runs.
    seconds: of this attempt's work. peak_memory_mb: of the main process. packages: name -> version. went_on:
    what of a killed attempt was taken over, a sentence each.
    """

    command: list[str]
    config: dict[str, Any]
    inputs: dict[str, InputRecord]
    datasets: list[str]
    launch: LaunchRecord
    seconds: float
    peak_memory_mb: float
    packages: dict[str, str]
    went_on: list[str]
    closing: ClosingRecord


DECISIVE: dict[str, type | tuple[type, ...]] = {
    "command": list,
    "config": dict,
    "inputs": dict,
    "seconds": (int, float),
    "closing": dict,
}
"""What those who decide by it read; `launch` is younger than some runs."""


def record_of_rows(path: Path) -> StageRecord | None:
    """The record of the stage that made a file; None where no stage did, and for a folder."""
    return read_stage_file(path.parent) if path.is_file() else None


def read_stage_file(folder: Path) -> StageRecord | None:
    """A finished stage's `stage.json`; None where the stage is not finished, or the file lacks what it should say."""
    try:
        record = read_json(folder / STAGE_FILE)
    except (OSError, ValueError):
        return None
    said = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in DECISIVE.items())
    return cast(StageRecord, record) if said else None
