"""Whether a run's files are still what they were: every file of every finished stage, the pools' links, the summary.

Reads the content of everything, whatever is known of it: this is the check that finds a bit that the disk flipped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import InputError
from rlhf.iteration.keeping import removed_parts
from rlhf.iteration.ledger import Record, last_record, output_digest, read_ledger
from rlhf.iteration.plan import PlannedStage
from rlhf.iteration.summary import read_summary, recorded_plan, summarise
from rlhf.stage import STAGE_FILE
from rlhf.stage.digests import FileDigests, changes

ANSWERS = "completions.parquet"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what is wrong with it, nothing where all is well; removed: what need not be
    there any more (`rlhf.iteration.keeping`)."""

    name: str
    problems: Sequence[str] = ()
    removed: Collection[str] = ()


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
    removed = removed_parts(records)
    for name, record in finished.items():
        gone = removed.get(name, frozenset())
        yield Finding(name, _stage_problems(run / name, record, digests, gone), sorted(gone))
    linked = sorted(run.rglob("pool/*.parquet"))
    summary = run / "summary.json"
    ended = next((record for record in reversed(records) if record["event"] == "ended"), None)
    complete = ended is not None and ended.get("finished", 0) == ended.get("stages")
    if not linked and not summary.exists() and not complete:
        return
    try:
        stages = recorded_plan(run)
    except InputError as error:
        yield Finding("config.yaml", [f"the plan cannot be read: {error}"])
        return
    problems = [problem for link in linked if (problem := _link_problem(link, run, stages, digests))]
    if complete:  # the end of a run links all versions' answers
        links = {run / "pool" / f"{s.version}.parquet" for s in stages if (s.output / ANSWERS).exists()}
        problems += [f"{link.relative_to(run)} is missing" for link in sorted(links) if not link.exists()]
    yield Finding("pool", problems)
    if summary.exists():
        yield Finding("summary.json", _summary_problems(run, stages))
    elif complete:
        yield Finding("summary.json", ["it is missing, though every stage is finished"])


def _stage_problems(folder: Path, record: Record, digests: FileDigests, removed: Collection[str]) -> Sequence[str]:
    if not folder.is_dir():
        return ["its folder is missing"]
    found = {n: v for n, v in digests.of_folder(folder, read=True).items() if Path(n).parts[0] not in removed}
    if "files" in record:
        return changes({n: value for n, value in record["files"].items() if Path(n).parts[0] not in removed}, found)
    changed = output_digest(found) != record.get("output") or found.get(STAGE_FILE) != record.get("stage_file")
    return ["some file is changed, missing or added"] if changed else []


def _link_problem(link: Path, run: Path, stages: Sequence[PlannedStage], digests: FileDigests) -> str | None:
    """What a pool holds of a version are that version's answers."""
    sampled = [s for s in stages if s.recipe == "rejection_sampling" or (s.output / ANSWERS).exists()]
    targets = {run / "pool" / f"{stage.version}.parquet": stage.output / ANSWERS for stage in sampled}
    targets |= {made: target for stage in stages for made, target in stage.links}
    name, answers = str(link.relative_to(run)), targets.get(link)
    if answers is None:
        return f"{name} belongs to no stage of the plan"
    if not answers.exists():
        return f"{name}: there is no {answers.relative_to(run)}"
    if digests.of(link, read=True) != digests.of(answers, read=True):
        return f"{name} differs from {answers.relative_to(run)}"
    return None


def _summary_problems(run: Path, stages: Sequence[PlannedStage]) -> Sequence[str]:
    """What the summary says but for the seconds, which the next start of a driver changes, is in the stages' files."""
    try:
        summary = read_summary(run)
    except InputError as error:
        return [str(error)]
    try:
        wanted = json.loads(json.dumps(summarise(run, stages)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"the stages' files cannot be read ({type(error).__name__}: {error})"]
    different = [name for name in {**wanted, **summary} if summary.get(name) != wanted.get(name)]
    return [f"{name} is not what the stages' files say" for name in different if name != "seconds"]
