"""Whether a run's files are still what they were: every file of every finished stage, the pools' links, the summary.

Reads the content of everything, whatever is known of it: this is the check that finds a bit that the disk flipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import InputError
from rlhf.iteration.digests import FileDigests, changes
from rlhf.iteration.ledger import Record, last_record, output_digest, read_ledger
from rlhf.iteration.summary import summarise
from rlhf.stage import STAGE_FILE

ANSWERS = "completions.parquet"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what is wrong with it, nothing where all is well."""

    name: str
    problems: Sequence[str] = ()


def verify_run(run: Path) -> Iterator[Finding]:
    """One finding a finished stage, then the pools' and the summary's, where there are any.

    Raises InputError where the ledger knows no finished stage: there would be nothing to say about.
    """
    records = read_ledger(run / "ledger.jsonl")
    newest = [last_record(records, name) for name in dict.fromkeys(r["stage"] for r in records if "stage" in r)]
    finished = {record["stage"]: record for record in newest if record is not None and record["event"] == "finished"}
    if not finished:
        raise InputError(f"run: the ledger of {run} knows no finished stage; there is nothing to verify")
    digests = FileDigests(run)
    for name, record in finished.items():
        yield Finding(name, _stage_problems(run / name, record, digests))
    pools = sorted(path for path in run.rglob("pool/*.parquet") if path.is_file())
    if pools:
        yield Finding("pool", [problem for path in pools if (problem := _link_problem(path, run, digests))])
    if (run / "summary.json").exists():
        yield Finding("summary.json", _summary_problems(run))


def _stage_problems(folder: Path, record: Record, digests: FileDigests) -> Sequence[str]:
    if not folder.is_dir():
        return ["its folder is missing"]
    found = digests.of_folder(folder, read=True)
    if "files" in record:
        return changes(record["files"], found)
    changed = output_digest(found) != record["output"] or found.get(STAGE_FILE) != record.get("stage_file")
    return ["some file is changed, missing or added"] if changed else []


def _link_problem(link: Path, run: Path, digests: FileDigests) -> str | None:
    """What a pool holds of a version are that version's answers."""
    answers = run / link.stem / "rejection_sampling" / ANSWERS
    if not answers.exists():
        return f"{link.relative_to(run)}: there is no {answers.relative_to(run)}"
    if digests.of(link, read=True) != digests.of(answers, read=True):
        return f"{link.relative_to(run)} differs from {answers.relative_to(run)}"
    return None


def _summary_problems(run: Path) -> Sequence[str]:
    """What the summary says but for the seconds, which the next start of a driver changes, is in the stages' files."""
    from rlhf.configuration import parse_config
    from rlhf.iteration.config import IterativeConfig

    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    try:
        given = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["config"]
        options = [part for name, value in given.items() for part in (f"--{name}", json.dumps(value))]
        wanted = summarise(replace(parse_config(IterativeConfig, options), run=run))
    except (OSError, KeyError, TypeError, InputError) as error:
        return [f"cannot be compared with the stages' files: {error}"]
    names = [*wanted, *(name for name in summary if name not in wanted)]
    return [
        f"{name} is not what the stages' files say"
        for name in names
        if name != "seconds" and summary.get(name) != wanted.get(name)
    ]
