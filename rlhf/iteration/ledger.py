"""What happened in a run, append-only: one JSON line an event in `ledger.jsonl`.

    {"event": "begun" | "ended", "time", "pid", …}                          a driver's first and last words
    {"event": "started" | "finished" | "failed" | "skipped", "time", "stage", "key", …}
    {"event": "removed", "time", "stage", "names", "bytes", "keep"}         a checkpoint that nothing reads any more

A "finished" record has the digest of every file of the stage's folder (`files`). A stage's `key` says what it is made
of: recipe, content of its YAML, options, digests of its inputs. A finished stage whose key and files are still the same
is not run again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.jsonl import is_stream
from rlhf.metrics import TENSORBOARD_FOLDER
from rlhf.stage import STAGE_FILE, read_stage_file
from rlhf.stage.card import CARD_FILE

Record = dict[str, Any]
PROGRESS = ("started", "finished", "failed")
LATEST = 1e15
"""Beyond every time, number of seconds and size in bytes: what is larger, infinite or not a number was not written."""
VOLATILE = {STAGE_FILE, "metrics.jsonl", TENSORBOARD_FOLDER}
LOCK = ".lock"
"""A file of a run that its driver holds a lock on."""


def read_ledger(path: Path) -> list[Record]:
    """The records; an unfinished last line (a kill) is left out. InputError names the line that is broken elsewhere."""
    if not path.exists():
        return []
    if is_stream(path):
        raise InputError(f"{path}: is a pipe or a device, and no ledger; move it away")
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a line of JSON; mend or remove that line") from None
            continue
        if record is None:
            continue
        if not _is_record(record):
            raise InputError(f"{path}:{number}: no event with its time and parts; mend or remove that line")
        records.append(record)
    return records


def _is_record(record: Any) -> bool:
    """Whether a line is an event with its time, and what it says of a stage is of the kind that readers take it for."""
    if not isinstance(record, dict) or not isinstance(record.get("event"), str) or not _is_number(record.get("time")):
        return False
    needs = {"removed": {"stage", "names"}, **{name: {"stage"} for name in (*PROGRESS, "skipped")}}
    if not needs.get(record["event"], set()) <= record.keys():
        return False
    kinds = {"stage": str, "key": dict, "files": dict, "names": list, "command": list, "output": str, "stage_file": str}
    right = all(isinstance(record[name], kind) for name, kind in kinds.items() if name in record)
    numbers = ("seconds", "bytes", "finished", "stages")
    return right and all(_is_number(record[name]) for name in numbers if name in record)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LATEST


class Ledger:
    """The ledger of one run, open for appending. Only one driver at a time may hold it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        if not whole.endswith(b"\n"):  # an unfinished last line goes, so that the next record starts a line
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self.records = read_ledger(path)

    def append(self, event: str, stage: str | None = None, **fields: Any) -> None:
        """Add a record and see it on the disk before going on."""
        record = {"event": event, "time": round(time.time(), 3)} | ({"stage": stage} if stage else {}) | fields
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def close_killed(self, last_alive: float) -> None:
        """Add the "ended" that a killed driver could not write, at the time of its last sign of life."""
        if self.records and self.records[-1]["event"] != "ended":
            self.append("ended", time=round(max(last_alive, self.records[-1]["time"]), 3), killed=True)

    def last(self, stage: str) -> Record | None:
        """As `last_record`."""
        return last_record(self.records, stage)


def is_driven(run: Path) -> bool:
    """Whether a driver is at work in this run just now."""
    try:
        with (run / LOCK).open("r") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def last_record(records: Sequence[Record], stage: str) -> Record | None:
    """The stage's newest record that says how far it is: "started", "finished" or "failed"."""
    return next((r for r in reversed(records) if r.get("stage") == stage and r["event"] in PROGRESS), None)


def wall_seconds(records: Iterable[Record]) -> float:
    """Wall time of all attempts together: each from "begun" to its last record. A clock set back adds nothing."""
    total, last = 0.0, None
    for record in records:
        if last is not None and record["event"] != "begun":
            total += max(0.0, record["time"] - last)
        last = record["time"]
    return round(total, 3)


def decides(name: str) -> bool:
    """Whether a file of a stage's folder decides anything: not what holds times, and not the cards of checkpoints."""
    return Path(name).parts[0] not in VOLATILE and Path(name).name != CARD_FILE


def output_digest(files: Mapping[str, str]) -> str:
    """Digest of what a stage made, but for what nothing reads (`decides`); 16 hex digits.

    Args:
        files: digest of every file of its folder, by path, from `rlhf.stage.digests`.
    """
    hasher = hashlib.sha256()
    for name in sorted(files, key=Path):
        if decides(name):
            hasher.update(f"{name}\0{files[name]}\n".encode())
    return hasher.hexdigest()[:16]


def made_digest(files: Mapping[str, str], path: str) -> str:
    """Digest of one file or folder among those that a stage made: what else it made decides nothing of who reads it.

    Args:
        files: as for `output_digest`.
        path: of the file or folder, in the stage's folder; "." is all of it.
    """
    if path in files:
        return files[path]
    return output_digest(files if path == "." else {n: d for n, d in files.items() if n.startswith(f"{path}{os.sep}")})


def suspicious_lines(folder: Path) -> list[str]:
    """What a finished stage's closing block calls suspicious; none where it is not finished."""
    record = read_stage_file(folder)
    return [] if record is None else list(record["closing"].get("suspicious", ()))
