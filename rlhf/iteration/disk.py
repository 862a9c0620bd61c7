"""Whether the disk has room for a plan, asked before it starts. Light: sizes of files and of YAML, no torch.

The estimate is a lower bound, so that what it refuses cannot fit: every stage that trains writes a checkpoint as large
as the one it starts from (none where an adapter alone is saved), and while the largest is trained there is one state to
go on from, its weights and two moments. Answers, figures and further states come on top.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.architecture import LlamaSize
from rlhf.errors import InputError
from rlhf.iteration.decision import yaml_of
from rlhf.iteration.keeping import Keep, superseded
from rlhf.iteration.plan import PlannedStage, maker_of

START_OF = {
    "sft": "policy",
    "helpfulness_reward": "policy",
    "safety_reward": "policy",
    "rejection_sampling": "fine_tune_from",
    "ppo": "policy",
    "dpo": "policy",
    "average_policies": "checkpoints",
    "ghost_attention": "policy",
    "context_distillation": "policy",
}
"""Recipe -> its option that names the checkpoint it starts to train from."""

STATE = 3
FLOAT32 = 4
PRETRAINING_VOCABULARY = 1024


def disk_needed(stages: Sequence[PlannedStage], to_run: Collection[str], keep: Keep = "all") -> int:
    """Bytes that the stages named in `to_run` will write at least, beyond those of the folders that they replace.

    Args:
        keep: what is removed meanwhile (`rlhf.iteration.keeping`), at the earliest, counts no more.
    """
    held: dict[str, int] = {}
    most = largest = 0
    finished = {stage.name for stage in stages if stage.name not in to_run}
    for stage in stages:
        if stage.name in to_run:
            held[stage.name] = checkpoint_bytes(stage, stages)
        largest = max(largest, held.get(stage.name, 0))
        most = max(most, sum(held.values()))
        finished.add(stage.name)
        for gone, _ in superseded(stages, finished, keep):
            held.pop(gone.name, None)
    replaced = sum(folder_bytes(stage.output) for stage in stages if stage.name in to_run)
    return max(0, most + STATE * largest - replaced)


def require_room(stages: Sequence[PlannedStage], to_run: Collection[str], run: Path, keep: Keep = "all") -> str:
    """What is needed and what is free, in words; InputError where it does not fit."""
    needed = disk_needed(stages, to_run, keep)
    folder = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    least = f"{in_words(needed)} at least" if needed else "adapters, answers and figures alone are"
    said = f"{least} to be written, {in_words(free)} free"
    if needed > free:
        raise InputError(
            f"run: no room for it in {folder}: {said}; free some, or name a folder on another disk with --run"
        )
    return said


def checkpoint_bytes(stage: PlannedStage, stages: Sequence[PlannedStage]) -> int:
    """Size of the checkpoint that a stage writes; 0 where it writes none, or an adapter alone."""
    given = _given(stage)
    if stage.recipe == "pretrain":
        size = LlamaSize(**given.get("size", {}))
        return FLOAT32 * size.parameters(given.get("vocab_size", PRETRAINING_VOCABULARY))
    option = START_OF.get(stage.recipe)
    adapters = (given, given.get("training") or {})  # reward models have theirs among the settings of training
    if option is None or any(part.get("quantization") for part in adapters) or given.get("roles") == "shared":
        return 0
    if any((part.get("adapter") or {}).get("merge", True) is False for part in adapters):
        return 0
    named = given.get(option)
    if str(named).startswith("["):  # of several that are averaged the first: they are alike
        named = json.loads(str(named))[0]
    start = Path(str(named.get("checkpoint") if isinstance(named, Mapping) else named))
    maker = maker_of(start, stages)
    if maker is not None and not start.exists():
        return checkpoint_bytes(maker, stages)
    return sum(file.stat().st_size for file in start.glob("*.safetensors"))


def in_words(size: int) -> str:
    """Bytes in decimal units, as disks are sold."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _given(stage: PlannedStage) -> dict[str, Any]:
    return {**(yaml_of(stage) or {}), **stage.overrides}


def folder_bytes(path: Path) -> int:
    """Size of all files below a folder; 0 where there is none."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
