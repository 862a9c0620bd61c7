"""Which checkpoints of a run's versions stay on the disk; the rest goes when nothing reads it any more.

    all      every one
    newest   of each artifact (policy, helpfulness, safety, …) the newest
    best     these, and the policy that won most often against the start, by its evaluation

A checkpoint goes once every stage of the plan that reads it is finished, and none that stays is an adapter over it.
What the start's steps made stays, as do answers, figures and rows. The ledger knows what went: a stage without its
checkpoint is finished still, and is run again only where a stage that has to run reads the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf.iteration.ledger import Record
from rlhf.iteration.plan import PlannedStage, maker_of

Keep = Literal["all", "newest", "best"]
WON = "win_rate_vs_sft"
"""The figure of an evaluation that says which policy is the best."""


def removed_parts(records: Iterable[Record]) -> dict[str, frozenset[str]]:
    """Stage -> what was removed from its folder since it was finished: names of files and folders in it."""
    removed: dict[str, frozenset[str]] = {}
    for record in records:
        if record["event"] == "finished":
            removed.pop(record["stage"], None)
        elif record["event"] == "removed":
            removed[record["stage"]] = removed.get(record["stage"], frozenset()) | {*record["names"]}
    return removed


def lacking(stage: PlannedStage, stages: Sequence[PlannedStage], removed: Mapping[str, Collection[str]]) -> list[str]:
    """The stages that have to run again before `stage` can: what it reads of them was removed."""
    makers = ((path, maker_of(path, stages)) for path in stage.inputs if not path.exists())
    found = [m.name for path, m in makers if m is not None and is_removed(path, m, removed)]
    return list(dict.fromkeys(found))


def is_removed(path: Path, maker: PlannedStage, removed: Mapping[str, Collection[str]]) -> bool:
    """Whether a path in a stage's folder was removed from it."""
    return path != maker.output and path.relative_to(maker.output).parts[0] in removed.get(maker.name, ())


def superseded(stages: Sequence[PlannedStage], finished: Collection[str], keep: Keep) -> list[tuple[PlannedStage, str]]:
    """What may go, as stages and names in their folders: by the plan alone, whether it is there or not.

    Args:
        finished: names of the stages that are; of others nothing goes, and what they read stays.
        keep: see this file's docstring. "best" is answered as if the newest policy were the best.
    """
    makers: dict[str, list[tuple[PlannedStage, str]]] = {}
    for stage in stages:
        if stage.version is not None and stage.name in finished:
            for artifact, place in stage.makes.items():
                if not Path(place).suffix:  # a folder: a checkpoint
                    makers.setdefault(artifact, []).append((stage, place))
    readers = [stage for stage in stages if stage.name not in finished]
    older = [] if keep == "all" else [one for made in makers.values() for one in made[:-1]]
    return [(stage, place) for stage, place in older if not any(_names(one, stage.output / place) for one in readers)]


def _names(reader: PlannedStage, path: Path) -> bool:
    """Whether a stage reads a path, or an option of it is or holds that path."""
    return path in reader.inputs or any(str(path) in text for text in reader.overrides.values())


def removable(stages: Sequence[PlannedStage], finished: Collection[str], keep: Keep) -> list[tuple[PlannedStage, str]]:
    """What goes now: of `superseded` that which is there, is not the best, and carries no adapter that stays."""
    places = {stage.output / place: (stage, place) for stage, place in superseded(stages, finished, keep)}
    going = {path for path in places if path.is_dir()}
    if keep == "best" and (best := best_policy(stages, finished)) is not None:
        going.discard(best.checkpoint)
    while bases := _bases(stages, going) & going:
        going -= bases
    return [places[path] for path in places if path in going]


class Best(NamedTuple):
    """A policy's folder; its win rate against the start with a 95 % interval, where one is written; of how many."""

    checkpoint: Path
    win_rate: float
    interval: Sequence[float] | None
    policies: int


def best_policy(stages: Sequence[PlannedStage], finished: Collection[str]) -> Best | None:
    """The policy with the highest win rate, the later one of equals; None: none was evaluated."""
    won: dict[Path, tuple[float, Sequence[float] | None]] = {}
    for stage in stages:
        file, policy = stage.output / "evaluation.json", stage.overrides.get("policy")
        if stage.name in finished and policy is not None and not (stage.student or stage.branch) and file.is_file():
            figures = json.loads(file.read_text(encoding="utf-8"))
            if figures.get(WON) is not None:
                won[Path(policy)] = float(figures[WON]), figures.get("win_rate_ci")
    best = max(reversed(won), key=lambda path: won[path][0], default=None)
    return None if best is None else Best(best, *won[best], len(won))


def _bases(stages: Sequence[PlannedStage], going: Collection[Path]) -> set[Path]:
    """The checkpoints under the adapters that stay."""
    made = {stage.output / place for stage in stages for place in stage.makes.values()}
    adapters = (path / "adapter" / "adapter_config.json" for path in made if path not in going)
    settings = (json.loads(file.read_text(encoding="utf-8")) for file in adapters if file.is_file())
    bases = {Path(found["base_model_name_or_path"]).resolve() for found in settings}
    return {path for path in going if path.resolve() in bases}
