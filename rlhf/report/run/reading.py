"""A run's files as the report needs them. A file that is not there, or not whole, leaves its part empty."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from rlhf.errors import InputError
from rlhf.iteration.plan import PlannedStage
from rlhf.iteration.summary import recorded_plan
from rlhf.jsonl import is_stream
from rlhf.rejection.temperature import SweepFigures
from rlhf.report.judgements.batches import Batch
from rlhf.report.run.folders import STAGE_FILE, Folders
from rlhf.training.spikes import FILE as SPIKES

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import VersionFigures
    from rlhf.ppo.watch import PPOFigures
    from rlhf.rejection.figures import RoundFigures
    from rlhf.rewards.training.accuracy import SummarisedReport

Row = dict[str, Any]
REFERENCE = "reference"
"""Name of the reference answers among the models that `recipes/evaluation/evaluate_text.py` measured."""
FIRST = ("sft", "start")
"""Names of what the versions of a run are compared with."""
BOUNDED = dict.fromkeys(("gold_helpfulness_ci", "gold_safety_ci", "distinct_2_ci", "repetition_ci"), 1.0)
BOUNDED |= {"mean_length_ci": math.inf, "kl_from_sft_ci": math.inf}
"""Intervals of figures that are none below 0, and the most that they can be."""


@dataclass(frozen=True)
class Stage:
    """One stage as the ledger and its stage.json tell: state is finished, running, failed, stopped, or to come.

    suspicious: what looked wrong at its end, a sentence each.
    """

    name: str
    state: str
    seconds: float | None = None
    memory_mb: float | None = None
    command: str | None = None
    attempts: int = 1
    suspicious: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """A stage that trains by the common loop: its metrics, a row a step, and the steps that stand out."""

    stage: str
    metrics: list[Row]
    spikes: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Ppo:
    """A PPO stage: its metrics, a row an iteration, and how it ended (ppo.json)."""

    stage: str
    metrics: list[Row]
    result: PPOFigures | None


class VersionSweep(SweepFigures):
    """A temperature sweep and the version that it was made for."""

    version: str


@dataclass(frozen=True)
class Measured:
    """What measured policies beside their evaluations, in the versions' order.

    Args:
        safety: each safety_evaluation.json; `instructions` each instruction_evaluation.json.
        leaderboard: name of a policy -> task -> its score.
        texts: set of answers -> name of a policy, or reference -> figure -> its distribution.
        benchmarks: stage -> its safety_benchmarks.json.
        rewards: stage -> its reward_evaluation.json.
        merges: stage -> its merge.json, of one that was measured on held-out answers.
    """

    safety: list[Row] = field(default_factory=list)
    instructions: list[Any] = field(default_factory=list)
    leaderboard: dict[str, dict[str, Row]] = field(default_factory=dict)
    texts: dict[str, dict[str, Row]] = field(default_factory=dict)
    benchmarks: dict[str, Row] = field(default_factory=dict)
    rewards: dict[str, Any] = field(default_factory=dict)
    merges: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """What was found in a run's folder, or (`whole_run` False) in the folders of stages made by hand.

    Args:
        versions: entries of summary.json's "versions", the first one first; without a summary yet, the evaluations'.
        branches: entries of "branches"; `students` of "students".
        answers: version name -> rows of its answers.jsonl; `beside`: the same of branches.
        reward_models: entries of "reward_models"; `referee` is the same for the referee.
        selections: selection.json of each rejection-sampling stage; `sweeps`: sweep.json of each temperature sweep.
        trainings: metrics.jsonl of each stage that trains by the common loop; `ppo`: of each that does PPO.
        people: human_evaluation.json of each comparison that people rated (`rlhf annotate --compare`).
        batches: of preferences, in the order of the versions.
        measured: by other recipes than evaluate.
        config: text of config.yaml; `settings` its content.
        recipes: of the stages that were planned.
    """

    path: Path
    title: str = ""
    whole_run: bool = True
    seconds: float | None = None
    versions: list[VersionFigures] = field(default_factory=list)
    branches: list[VersionFigures] = field(default_factory=list)
    students: list[VersionFigures] = field(default_factory=list)
    answers: dict[str, list[Row]] = field(default_factory=dict)
    beside: dict[str, list[Row]] = field(default_factory=dict)
    reward_models: list[SummarisedReport] = field(default_factory=list)
    referee: SummarisedReport | None = None
    selections: list[RoundFigures] = field(default_factory=list)
    sweeps: list[VersionSweep] = field(default_factory=list)
    ppo: list[Ppo] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    people: list[Row] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    measured: Measured = field(default_factory=Measured)
    stages: list[Stage] = field(default_factory=list)
    config: str | None = None
    settings: Row = field(default_factory=dict)
    recipes: frozenset[str] = frozenset()


def read_run(*paths: Path) -> RunFiles:
    """Read what there is of a run's folder, or of stages' folders that were made by hand.

    Raises:
        InputError: no such folder, or nothing of a run in it, or a run and something else.
    """
    folders = Folders.of(paths)
    run = folders.run
    last = (_jsonl(run / "ledger.jsonl") or [{}])[-1].get("event", "ended")
    summary = _json(run / "summary.json") if last == "ended" else {}  # else of an earlier end, and the run goes on
    evaluated = [(path, e) for path in folders.files("evaluation.json") if "name" in (e := _json(path))]
    alike = [e["name"] for _, e in evaluated] if folders.stages else []
    evaluations = {
        name: e | {"name": name, "_path": path}
        for path, e in evaluated
        for name in [f"{e['name']}, {folders.name_of(path)}" if alike.count(e["name"]) > 1 else e["name"]]
    }
    planned = _planned(folders)
    measured = _policies(folders, summary, list(evaluations.values()), planned)
    names, branches = ([entry["name"] for entry in measured[of]] for of in ("versions", "branches"))
    config = _text(run / "config.yaml")
    logs = [(folders.name_of(path), path, _jsonl(path)) for path in folders.files("metrics.jsonl")]
    logs += [(f"{folders.name_of(p)}, unfinished", p, _jsonl(p)) for p in folders.unfinished("metrics.jsonl")]
    files = RunFiles(
        path=run,
        title=folders.title,
        whole_run=not folders.stages,
        seconds=summary.get("seconds"),
        versions=cast("list[VersionFigures]", measured["versions"]),
        branches=cast("list[VersionFigures]", measured["branches"]),
        students=cast("list[VersionFigures]", measured["students"]),
        answers={n: _jsonl(evaluations[n]["_path"].with_name("answers.jsonl")) for n in names if n in evaluations},
        beside={n: _jsonl(evaluations[n]["_path"].with_name("answers.jsonl")) for n in branches if n in evaluations},
        reward_models=summary.get("reward_models") or _accuracies(folders),
        referee=summary.get("referee") or _referee(run),
        selections=[
            cast("RoundFigures", {"version": folders.version_of(path)} | _json(path))
            for path in folders.files("selection.json")
        ],
        sweeps=[
            cast("VersionSweep", sweep | {"version": folders.version_of(path)})
            for path in folders.files("sweep.json")
            if (sweep := _json(path))
        ],
        ppo=[
            Ppo(name, metrics, cast("PPOFigures | None", _json(path.with_name("ppo.json")) or None))
            for name, path, metrics in logs
            if _is_ppo(path, metrics)
        ],
        trainings=[
            Training(name, metrics, _spikes(path))
            for name, path, metrics in logs
            if not _is_ppo(path, metrics) and sum("loss" in row for row in metrics) > 1
        ],
        people=[found for path in folders.files("human_evaluation.json") if (found := _json(path))],
        batches=[
            Batch(folders.version_of(path), batch)
            for path in folders.files("statistics.json")
            if isinstance(batch := _json(path).get("batch"), dict)
        ],
        measured=_measured(folders, [*names, *branches], planned),
        stages=_stages(folders, planned),
        config=config,
        settings=_yaml(config),
        recipes=frozenset(stage.recipe for stage in planned),
    )
    if not (files.versions or files.reward_models or files.stages or files.selections):
        raise InputError(
            f"run: there is no summary.json, ledger.jsonl or finished stage in {run}; is it a run's folder?"
        )
    return files


def _planned(folders: Folders) -> list[PlannedStage]:
    """The stages of a run's plan, as its driver recorded it; none where it cannot be read."""
    try:
        return [] if folders.stages else recorded_plan(folders.run)
    except InputError:
        return []


def _is_ppo(metrics: Path, rows: Sequence[Row]) -> bool:
    return metrics.with_name("ppo.json").is_file() or any("heldout_reward" in row for row in rows)


def _policies(
    folders: Folders, summary: Row, evaluations: Sequence[Row], planned: Sequence[PlannedStage]
) -> dict[str, list[Row]]:
    """Whose figures the summary has: of versions, branches and students; without one, by the run's plan.

    Raises:
        InputError: the summary is none.
    """
    listed = summary.get("versions") or []
    if not isinstance(listed, list) or not all(isinstance(v, dict) and isinstance(v.get("name"), str) for v in listed):
        path = folders.run / "summary.json"
        raise InputError(f"run: {path} is no summary of a run; leave it out, or have the run write it")
    if listed:
        return {
            of: [_possible(entry) for entry in summary.get(of) or []] for of in ("versions", "branches", "students")
        }
    order = {stage.name: place for place, stage in enumerate(planned)}
    aside = {
        stage.name: "students" if stage.student else "branches" for stage in planned if stage.student or stage.branch
    }
    found: dict[str, list[Row]] = {"versions": [], "branches": [], "students": []}

    def place(entry: Row) -> tuple[bool, int, str]:
        name: str = entry["name"]
        return name.partition(",")[0] not in FIRST, order.get(folders.name_of(entry["_path"]), len(order)), name

    for entry in sorted(evaluations, key=place):
        kind = aside.get(folders.name_of(entry["_path"]), "versions")
        found[kind].append(_possible({key: value for key, value in entry.items() if key != "_path"}))
    return found


def _possible(entry: Row) -> Row:
    """A version's figures, their intervals within what can be: a t interval knows no bounds."""
    clipped = {
        name: [min(max(end, 0.0), most) for end in ci]
        for name, most in BOUNDED.items()
        if (ci := entry.get(name)) is not None
    }
    return {**entry, **clipped}


def _spikes(metrics: Path) -> list[Row]:
    """The steps that stand out, beside the metrics."""
    return [row for row in _jsonl(metrics.with_name(SPIKES)) if "step" in row and isinstance(row.get("rows"), list)]


def _measured(folders: Folders, order: Sequence[str], planned: Sequence[PlannedStage]) -> Measured:
    """In `order`, what it does not name behind it as it was planned."""
    stages = [stage.name for stage in planned]

    def place(name: str) -> int:
        return order.index(name) if name in order else len(order) + (name == REFERENCE)

    def files(name: str) -> list[Path]:
        found = [(folders.name_of(path), path) for path in folders.files(name)]
        return [path for _, path in sorted(found, key=lambda one: stages.index(one[0]) if one[0] in stages else -1)]

    def named(file: str) -> list[Row]:
        found = [content for path in files(file) if isinstance((content := _json(path)).get("name"), str)]
        return sorted(found, key=lambda content: place(content["name"]))

    def by_stage(file: str) -> dict[str, Row]:
        return {folders.name_of(path): found for path in files(file) if (found := _json(path))}

    scores = {name: row for path in files("leaderboard.json") for name, row in _json(path).items()}
    texts: dict[str, dict[str, Row]] = {}
    for path in files("text_metrics.json"):
        for source, row in _json(path).items():
            texts.setdefault(source, {}).update(row)
    return Measured(
        safety=named("safety_evaluation.json"),
        instructions=named("instruction_evaluation.json"),
        leaderboard={name: scores[name] for name in sorted(scores, key=place)},
        texts={source: {name: rows[name] for name in sorted(rows, key=place)} for source, rows in texts.items()},
        benchmarks=by_stage("safety_benchmarks.json"),
        rewards=by_stage("reward_evaluation.json"),
        merges={stage: found for stage, found in by_stage("merge.json").items() if "heldout" in found},
    )


def _referee(run: Path) -> SummarisedReport | None:
    report = _json(run / "referee_reward" / "accuracy.json")
    return cast("SummarisedReport", report) if report else None


def _accuracies(folders: Folders) -> list[SummarisedReport]:
    found = [(folders.version_of(path), _json(path)) for path in folders.files("accuracy.json")]
    reports = [
        entry
        | {
            "version": version,
            "accuracy_by_strength": {s: c["accuracy"] for s, c in (entry.get("accuracy_by_strength") or {}).items()},
            "pairs_by_strength": {s: c["pairs"] for s, c in (entry.get("accuracy_by_strength") or {}).items()},
        }
        for version, entry in found
        if version != "referee_reward" and "accuracy" in entry
    ]
    return cast("list[SummarisedReport]", reports)


def _stages(folders: Folders, planned: Sequence[PlannedStage]) -> list[Stage]:
    """Stages in the order in which they were last started; those the ledger does not know come last, as planned."""
    stages: dict[str, Stage] = {}
    attempts: dict[str, int] = {}
    for record in _jsonl(folders.run / "ledger.jsonl"):
        name, event = record.get("stage"), record.get("event")
        if not isinstance(name, str) or event not in ("started", "finished", "failed"):
            continue
        if event == "started":
            attempts[name] = attempts.get(name, 0) + 1
            stages.pop(name, None)
            stages[name] = Stage(name, "running", command=_command(record), attempts=attempts[name])
        elif event == "finished":
            command = _command(record) or (stages[name].command if name in stages else None)
            seconds, memory = record.get("seconds"), record.get("peak_memory_mb")
            stages[name] = Stage(name, "finished", seconds, memory, command, attempts.get(name, 1))
        else:
            stopped = str(record.get("error") or "").startswith("stopped")
            command = stages[name].command if name in stages else None
            stages[name] = Stage(name, "stopped" if stopped else "failed", None, None, command, attempts.get(name, 1))
    for path in folders.files(STAGE_FILE):
        name, record = folders.name_of(path), _json(path)
        if name not in stages:
            took = record.get("seconds"), record.get("peak_memory_mb")
            stages[name] = Stage(name, "finished", *took, _command(record))
        stages[name] = replace(stages[name], suspicious=_suspicions(record))
    to_come = [Stage(stage.name, "to come") for stage in planned if stage.name not in stages]
    return [*stages.values(), *to_come]


def _suspicions(record: Mapping[str, Any]) -> tuple[str, ...]:
    closing = record.get("closing")
    found = closing.get("suspicious") if isinstance(closing, dict) else None
    return tuple(map(str, found)) if isinstance(found, Sequence) and not isinstance(found, str) else ()


def _command(record: Mapping[str, Any]) -> str | None:
    parts = record.get("command")
    if not isinstance(parts, list) or not parts:
        return None
    return shlex.join([Path(str(parts[0])).name, *map(str, parts[1:])])


def _text(path: Path) -> str | None:
    try:
        return None if is_stream(path) else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _json(path: Path) -> Row:
    try:
        content = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _jsonl(path: Path) -> list[Row]:
    """The lines that are objects, up to the first that is not whole."""
    rows = []
    for line in (_text(path) or "").split("\n"):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            break
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _yaml(text: str | None) -> Row:
    try:
        content = yaml.safe_load(text or "")
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
