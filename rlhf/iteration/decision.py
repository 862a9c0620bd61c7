"""What a stage is made of, and whether it has to run. Reads files, changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhf.errors import InputError
from rlhf.iteration.keeping import is_removed, lacking, removed_parts
from rlhf.iteration.ledger import Record, decides, last_record, made_digest, read_ledger
from rlhf.iteration.plan import PlannedStage, dependencies, maker_of
from rlhf.stage import STAGE_FILE, StageRecord, digest, read_stage_file
from rlhf.stage.digests import FileDigests, changes
from rlhf.strict_yaml import LOADER

KEY = {"recipe": str, "config": str, "overrides": dict, "inputs": dict}
"""What every key has, by its type."""


def stage_key(stage: PlannedStage, run: Path, inputs: Mapping[str, str]) -> Record:
    """What the stage is made of; equal keys give equal results. Paths inside the run are relative to it.

    Raises InputError where the stage's YAML cannot be read.
    """
    content = yaml_of(stage)
    config, written = _hash(without_addresses(content)), _hash(content)
    overrides = {name: _inside(value, run) for name, value in stage.overrides.items()}
    return {
        "recipe": stage.recipe,
        "config": config,
        **({"written": written} if written != config else {}),
        "overrides": overrides,
        "inputs": {_inside(path, run): value for path, value in inputs.items()},
    }


def yaml_of(stage: PlannedStage) -> Any:
    """The content of a stage's YAML; None where it has none, or an empty one. InputError where it cannot be read."""
    if stage.config_file is None:
        return None
    try:
        return yaml.load(stage.config_file.read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{stage.name}: {stage.config_file} cannot be read: {' '.join(str(error).split())}") from error


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


SERVERS = ("server", "judge", "judges")
"""Options that say where a model answers; the last one is a list."""
ADDRESS = ("url", "api_key_env", "concurrency", "timeout", "retries")
"""Of these: where it is and how patiently it is asked. Whose answers come, its `model` there says."""


def without_addresses(value: Any, name: str = "") -> Any:
    """A value of a YAML file, called `name` there, without what another address of the same models changes."""
    if isinstance(value, Mapping):
        left = {key: part for key, part in value.items() if not (name in SERVERS and key in ADDRESS)}
        return {key: without_addresses(part, str(key)) for key, part in left.items()}
    return [without_addresses(part, name) for part in value] if isinstance(value, list) else value


def _deciding_overrides(overrides: Mapping[str, str]) -> dict[str, str]:
    """Options on the command line, groups of them as JSON, without addresses in the same way."""
    found = {}
    for option, text in overrides.items():
        group, last = option.split(".")[-2:] if "." in option else ("", option)
        if group in SERVERS and last in ADDRESS:
            continue
        try:
            found[option] = json.dumps(without_addresses(json.loads(text), last))
        except ValueError:  # a text
            found[option] = text
    return found


def _inside(text: str, run: Path) -> str:
    return text.replace(f"{run}{os.sep}", f"<run>{os.sep}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What changed from one key to another, in words; None: nothing."""
    if old["recipe"] != new["recipe"]:
        return f"recipe {old['recipe']} became {new['recipe']}"
    if old["config"] not in (new["config"], new.get("written")):  # that of a ledger which knew addresses too
        return "its YAML changed"
    compared = (
        (_deciding_overrides(old["overrides"]), _deciding_overrides(new["overrides"]), "--{} changed"),
        (old["inputs"], new["inputs"], "its input {} changed"),
    )
    for before, after, word in compared:
        for name in [*after, *before]:
            if before.get(name) != after.get(name):
                return word.format(name)
    return None


@dataclass(frozen=True)
class Decision:
    """Whether a stage has to run.

    skip: it is finished; adopt: it is finished but the ledger does not say so yet (the driver was killed just then, or
    the stage was run by hand with the same command); run: it has to, for this reason; wait: for the stages that the
    reason names, which have to run before; where it is finished itself, it runs again if what it reads of them changes.
    """

    action: Literal["skip", "adopt", "run", "wait"]
    reason: str = ""
    finished: bool = False


def decide(
    stage: PlannedStage, key: Record, last: Record | None, digests: FileDigests, removed: Collection[str] = ()
) -> Decision:
    """Compare what the stage is made of now, and what it made, with the ledger's newest record of it. Changes nothing.

    Args:
        removed: names in its folder of what need not be there (`rlhf.iteration.keeping`).

    Raises InputError where a folder is at the stage's place that the run did not make: it is not ours to replace.
    """
    if not os.path.lexists(stage.output):
        finished = last is not None and last["event"] == "finished"
        return Decision("run", "" if last is None else "its folder is gone" if finished else "it did not finish")
    if last is None:
        raise InputError(f"run: the ledger does not know {stage.output}; remove that folder or name another --run")
    if not (stage.output / STAGE_FILE).is_file():
        raise InputError(f"run: {stage.output} has no {STAGE_FILE}, so no stage made it; move it away, or remove it")
    record = read_stage_file(stage.output)
    if record is None:
        return Decision("run", f"its {STAGE_FILE} cannot be read")
    recorded = last["event"] == "finished" and last.get("stage_file") == digest(stage.output / STAGE_FILE)
    if not recorded and not _is_made_by(record, stage, last):
        raise InputError(
            f"run: {stage.output} was made by hand with other options than this run's; move it away, or remove it"
        )
    if not all(isinstance(last.get("key", {}).get(name), kind) for name, kind in KEY.items()):
        return Decision("run", "the ledger does not say what it was made of")
    if changed := difference(last["key"], key) or _changed_file(stage, record, digests) or _precision(stage, record):
        return Decision("run", changed)
    if last["event"] == "failed" and last.get("stage_file") == digest(stage.output / STAGE_FILE):
        return Decision("run", "it failed when it had written its folder")
    if recorded:
        damage = damage_of(stage, last, digests, removed)
        return Decision("run", f"its {damage}") if damage else Decision("skip")
    if missing := not_made(stage):
        return Decision("run", f"it did not write {missing}")
    return Decision("adopt")


def not_made(stage: PlannedStage) -> str | None:
    """The first of what the plan says that a recipe of the user's makes, and that its folder lacks; None: all is there.

    Our own recipes leave out what their options do not ask for.
    """
    if not stage.recipe.endswith(".py"):
        return None
    places = (place.replace("{version}", "*") for place in stage.makes.values())
    return next((place for place in places if not any(stage.output.glob(place))), None)


def _is_made_by(record: StageRecord, stage: PlannedStage, last: Record) -> bool:
    """Whether a stage.json is of a command that the run gives now, or gave when it last started the stage."""
    arguments = _deciding(record["command"][2:])
    given = _deciding(last.get("command", ()))
    return arguments == stage.arguments or (bool(arguments) and given[-len(arguments) :] == arguments)


def _deciding(words: Sequence[str]) -> list[str]:
    """A command without --fresh and --strict and their values, which a person adds and which decide no result."""
    added = [place for place, word in enumerate(words) if word in ("--fresh", "--strict")]
    return [word for place, word in enumerate(words) if place not in added and place - 1 not in added]


def damage_of(
    stage: PlannedStage, finished: Record, digests: FileDigests, removed: Collection[str] = (), *, read: bool = False
) -> str | None:
    """What became of a file that the stage made, in words; None: all are as they were. Files beside them do not count.

    Args:
        finished: the ledger's record of it.
        removed: names in its folder of what need not be there.
        read: see `FileDigests.of`.
    """
    found = digests.of_folder(stage.output, read=read)
    stays = (name for name in finished.get("files", {}) if Path(name).parts[0] not in removed)
    recorded = {name: finished["files"][name] for name in stays if decides(name)}
    lost = changes(recorded, {name: found[name] for name in recorded if name in found})
    return None if not lost else lost[0] + (f", and {len(lost) - 1} more of its files" if len(lost) > 1 else "")


def _changed_file(stage: PlannedStage, record: StageRecord, digests: FileDigests) -> str | None:
    """The input that the stage's YAML named, and not the plan, where its content is another now; in words."""
    for name, entry in record["inputs"].items():
        path, option = Path(entry["path"]), re.sub(r"\.(\d+|rows)$", "", name)  # of several, of a file with a domain
        if option not in stage.overrides and path.exists() and digests.of(path) != entry["digest"]:
            return f"its input {path} changed"
    return None


def _precision(stage: PlannedStage, record: StageRecord) -> str | None:
    """That another mixed precision is asked for than the stage was computed in; in words. What else its launch says
    changes the result by rounding alone."""
    asked, had = stage.launch.mixed_precision, record.get("launch", {}).get("mixed_precision")
    return None if None in (asked, had) or asked == had else f"its mixed_precision was {had}, now {asked} is asked for"


def input_digests(
    stage: PlannedStage,
    stages: Sequence[PlannedStage],
    made: Mapping[str, Mapping[str, str]],
    digests: FileDigests,
    removed: Mapping[str, Collection[str]],
) -> dict[str, str]:
    """Path -> digest: of what is read, and not of all that the stage which made it made.

    Args:
        made: stage -> digests of its files, as recorded.
        digests: of files from outside the run.

    Raises InputError for an input that does not exist, unless it was removed (`rlhf.iteration.keeping`).
    """
    found = {}
    for path in stage.inputs:
        maker = maker_of(path, stages)
        if not path.exists() and not (maker and is_removed(path, maker, removed)):
            way_out = f"{maker.name} did not write it, see its log" if maker else "name an existing one"
            raise InputError(f"{stage.name}: {path} does not exist; {way_out}")
        if maker is None:
            found[str(path)] = digests.of(path)
        else:
            found[str(path)] = made_digest(made[maker.name], str(path.relative_to(maker.output)))
    return found


def decisions(stages: Sequence[PlannedStage], run: Path, digests: FileDigests) -> dict[str, Decision]:
    """What a driver would do now, by the stages' names. Changes nothing."""
    records = read_ledger(run / "ledger.jsonl")
    removed = removed_parts(records)
    wanted: dict[str, Decision] = {}
    while True:
        decided = _decided(stages, run, digests, records, removed, wanted)
        to_run = [stage for stage in stages if decided[stage.name].action == "run"]
        more = {name: wanted_again(stage.name) for stage in to_run for name in lacking(stage, stages, removed)}
        if more.keys() <= wanted.keys():
            return decided
        wanted |= more


def wanted_again(reader: str) -> Decision:
    """Of a stage whose checkpoint was removed."""
    return Decision("run", f"its checkpoint was removed, and {reader} reads it")


def _decided(
    stages: Sequence[PlannedStage],
    run: Path,
    digests: FileDigests,
    records: Sequence[Record],
    removed: Mapping[str, Collection[str]],
    wanted: Mapping[str, Decision],
) -> dict[str, Decision]:
    needs = dependencies(stages)
    made: dict[str, Mapping[str, str]] = {}
    decided = {}
    for stage in stages:
        last = last_record(records, stage.name)
        if missing := [name for name in needs[stage.name] if name not in made]:
            finished = last is not None and last["event"] == "finished" and stage.output.is_dir()
            decided[stage.name] = Decision("wait", ", ".join(missing), finished)
            continue
        key = stage_key(stage, run, input_digests(stage, stages, made, digests, removed))
        decision = wanted.get(stage.name) or decide(stage, key, last, digests, removed.get(stage.name, ()))
        decided[stage.name] = decision
        if decision.action == "skip" and last is not None:
            made[stage.name] = last.get("files", {})
        elif decision.action == "adopt":
            made[stage.name] = digests.of_folder(stage.output)
    return decided


def read_inputs(stages: Sequence[PlannedStage], run: Path, digests: FileDigests) -> list[str]:
    """Read what finished stages made and others, that have to run, will read: from then on `decide` sees every damage.

    A damaged one has to run, so what that one reads is read in turn. Returns the names of all that have to run, as far
    as can be known before.
    """
    records = read_ledger(run / "ledger.jsonl")
    needs = dependencies(stages)
    by_name = {stage.name: stage for stage in stages}
    removed = removed_parts(records)
    read: set[str] = set()
    while True:
        decided = decisions(stages, run, digests)
        to_run = [name for name, decision in decided.items() if decision.action in ("run", "wait")]
        wanted = {maker for name in to_run for maker in needs[name] if decided[maker].action == "skip"} - read
        if not wanted:
            return to_run
        for name in wanted:
            finished = last_record(records, name)
            assert finished is not None, "it is skipped, so it is in the ledger"
            damage_of(by_name[name], finished, digests, removed.get(name, ()), read=True)
        read |= wanted


def preview(stages: Sequence[PlannedStage], run: Path) -> list[str]:
    """In words, for each stage, what a driver would do now."""
    return [_in_words(decision) for decision in decisions(stages, run, FileDigests(run)).values()]


def _in_words(decision: Decision) -> str:
    if decision.action in ("skip", "adopt"):
        return "finished"
    if decision.action == "wait":
        if decision.finished:
            return f"finished, and runs again if what it reads of {decision.reason} comes out another"
        return f"to run, after {decision.reason}"
    return "to run" + (f": {decision.reason}" if decision.reason else "")
