"""What a stage is made of, and whether it has to run. Reads files, changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhf.errors import InputError
from rlhf.iteration.ledger import Record, last_record, output_digest, read_ledger, read_stage_file
from rlhf.iteration.plan import PlannedStage, dependencies, maker_of
from rlhf.stage import STAGE_FILE, digest


def stage_key(stage: PlannedStage, run: Path, inputs: Mapping[str, str]) -> Record:
    """What the stage is made of; equal keys give equal results. Paths inside the run are relative to it.

    Raises InputError where the stage's YAML cannot be read.
    """
    try:
        content = yaml.safe_load(stage.config_file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{stage.name}: {stage.config_file} cannot be read: {' '.join(str(error).split())}") from error
    config = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    overrides = {name: _inside(value, run) for name, value in stage.overrides.items()}
    return {
        "recipe": stage.recipe,
        "config": config,
        "overrides": overrides,
        "inputs": {_inside(path, run): value for path, value in inputs.items()},
    }


def _inside(text: str, run: Path) -> str:
    return text.replace(f"{run}{os.sep}", f"<run>{os.sep}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What changed from one key to another, in words; None: nothing."""
    if old["recipe"] != new["recipe"]:
        return f"recipe {old['recipe']} became {new['recipe']}"
    if old["config"] != new["config"]:
        return "its YAML changed"
    for part, word in (("overrides", "--{} changed"), ("inputs", "its input {} changed")):
        for name in [*new[part], *old[part]]:
            if old[part].get(name) != new[part].get(name):
                return word.format(name)
    return None


@dataclass(frozen=True)
class Decision:
    """Whether a stage whose inputs are there has to run.

    skip: it is finished; adopt: it is finished but the ledger does not say so yet (the driver was killed just then, or
    the stage was run by hand with the same command); run: it has to, for this reason.
    """

    action: Literal["skip", "adopt", "run"]
    reason: str = ""


def decide(stage: PlannedStage, key: Record, last: Record | None) -> Decision:
    """Compare what the stage is made of now with the ledger's newest record of it. Changes nothing.

    Raises InputError where the folder is there but the ledger knows nothing of it: it is not ours to replace.
    """
    if last is None:
        if stage.output.exists():
            raise InputError(f"run: the ledger does not know {stage.output}; remove that folder or name another --run")
        return Decision("run")
    record = read_stage_file(stage.output)
    if record is None:
        return Decision("run", "it did not finish" if last["event"] != "finished" else "its folder is gone")
    if changed := difference(last["key"], key) or _changed_file(stage, record):
        return Decision("run", changed)
    if last["event"] == "finished" and last["stage_file"] == digest(stage.output / STAGE_FILE):
        return Decision("skip")
    if record["command"][2:] == stage.arguments:
        return Decision("adopt")
    return Decision("run", "it was run by hand with other options")


def _changed_file(stage: PlannedStage, record: Record) -> str | None:
    """The input that the stage's YAML named, and not the plan, where its content is another now; in words."""
    for name, entry in record["inputs"].items():
        path = Path(entry["path"])
        if name.split(".")[0] not in stage.overrides and path.exists() and digest(path) != entry["digest"]:
            return f"its input {path} changed"
    return None


def input_digests(stage: PlannedStage, stages: Sequence[PlannedStage], made: Mapping[str, str]) -> dict[str, str]:
    """Path -> digest: the recorded one (`made`) of the stage that made it, or that of a file from outside the run.

    Raises InputError for an input that does not exist.
    """
    digests = {}
    for path in stage.inputs:
        maker = maker_of(path, stages)
        if not path.exists():
            way_out = f"{maker.name} did not write it, see its log" if maker else "name an existing one"
            raise InputError(f"{stage.name}: {path} does not exist; {way_out}")
        digests[str(path)] = made[maker.name] if maker else digest(path)
    return digests


def preview(stages: Sequence[PlannedStage], run: Path) -> list[str]:
    """In words, for each stage, what a driver would do now."""
    records = read_ledger(run / "ledger.jsonl")
    needs = dependencies(stages)
    made: dict[str, str] = {}
    states = []
    for stage in stages:
        if missing := [name for name in needs[stage.name] if name not in made]:
            states.append(f"to run, after {', '.join(missing)}")
            continue
        last = last_record(records, stage.name)
        decision = decide(stage, stage_key(stage, run, input_digests(stage, stages, made)), last)
        if decision.action == "run" or last is None:
            states.append("to run" + (f": {decision.reason}" if decision.reason else ""))
            continue
        made[stage.name] = last["output"] if decision.action == "skip" else output_digest(stage.output)
        states.append("finished")
    return states
