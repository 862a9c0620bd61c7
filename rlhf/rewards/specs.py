"""What a user may name where a reward goes, and the files behind it. Light: no torch.

- a reward-model folder;
- `package.module:attribute`, a reward function of one's own;
- a YAML or JSON file of an ensemble, whose members are either of these.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.imports import code_inputs, import_object
from rlhf.models.checkpoint.folder import require_checkpoint, require_reward_head
from rlhf.models.checkpoint.labels import good_and_bad, writes_text
from rlhf.paths import NamesModel, model_place, require_files

ENSEMBLE_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class EnsembleConfig:
    """Several reward models that score as one.

    Args:
        members: reward-model folders, or import paths of reward functions; two or more, on one scale.
        uncertainty_weight: of the standard deviation over the members, taken off their mean score.
    """

    members: tuple[Annotated[str, NamesModel()], ...]
    uncertainty_weight: float = 0.0

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise InputError(f"members: an ensemble has two or more, got {len(self.members)}")
        nested = [member for member in self.members if is_ensemble(member)]
        if nested:
            raise InputError(f"members: {nested[0]} is an ensemble itself; name its members")
        if not 0 <= self.uncertainty_weight < math.inf:
            raise InputError(f"uncertainty_weight: must be 0 or above, got {self.uncertainty_weight}")


def is_import_path(spec: str | os.PathLike[str]) -> bool:
    """Whether a spec names a reward function by import path."""
    return ":" in os.fspath(spec) and not Path(spec).exists()


def is_ensemble(spec: str | os.PathLike[str]) -> bool:
    """Whether a spec names the file of an ensemble."""
    return Path(spec).suffix in ENSEMBLE_SUFFIXES and not Path(spec).is_dir()


def are_checkpoints(*specs: str | os.PathLike[str] | None) -> bool:
    """Whether all that are given are reward-model folders, so that a stage's digests say what they score by: of a
    function of one's own they know one file, and not what that imports, and an ensemble may have such a member."""
    return not any(is_import_path(spec) or is_ensemble(spec) for spec in specs if spec is not None)


def kept_scores(states: Path, name: str, *rewards: str | os.PathLike[str] | None) -> Path | None:
    """The file in which these rewards' scores outlive a kill; None: not `are_checkpoints`, and they are made again.

    Args:
        states: folder of the training's states, which an attempt with other inputs or options does not take over.
        name: of what is scored.
    """
    return states / f"scores_{name}.json" if are_checkpoints(*rewards) else None


def read_ensemble(file: str | os.PathLike[str]) -> EnsembleConfig:
    """The ensemble that a file describes; InputError names the file and what is wrong with it."""
    try:
        return parse_config(EnsembleConfig, ["--config", os.fspath(file)])
    except InputError as error:
        raise InputError(f"ensemble {file}: {error}") from error


def reward_files(**specs: str | os.PathLike[str] | None) -> dict[str, Path]:
    """The checked inputs of a stage: field -> folder, or file of an ensemble with its folders as field.0, field.1, …

    A reward function by import path has the file of its own code, as field.code; a field of None has none.

    Raises:
        InputError: naming the field: something does not exist, or cannot be imported; naming the folder: it has no
            scalar head.
    """
    found: dict[str, Path] = {}
    for field, spec in specs.items():
        if spec is None:
            continue
        if is_import_path(spec):
            import_object(field, os.fspath(spec))
            found |= code_inputs(field, os.fspath(spec))
            continue
        spec = model_place(spec)
        if named := _meant(spec):
            what = "is no reward model" if Path(spec).suffix == ".py" else "does not exist"
            raise InputError(f"{field}: {spec} {what}; a function of your own is named {named}")
        require_files(**{field: spec})
        found[field] = spec
        if is_ensemble(spec):
            members = {f"{field}.{number}": member for number, member in enumerate(read_ensemble(spec).members)}
            found |= reward_files(**members)
        else:
            require_reward(spec)
    return found


def _meant(spec: str | os.PathLike[str]) -> str | None:
    """The import path that `package.module.function`, or a Python file, was meant to be; None: it is neither."""
    module, dot, name = os.fspath(spec).rpartition(".")
    if name == "py":
        return f"{module.replace(os.sep, '.').lstrip('.')}:FUNCTION"
    words = [*module.split("."), name]
    is_name = bool(dot) and all(word.isidentifier() for word in words)
    return f"{module}:{name}" if is_name and not Path(spec).exists() and not is_ensemble(spec) else None


def require_reward(folder: str | os.PathLike[str]) -> None:
    """InputError where a folder holds nothing that scores: see `rlhf.rewards.loading.load_reward`."""
    if not writes_text(require_checkpoint(folder)):
        require_reward_head(folder)
        good_and_bad(folder)


class RewardSpec(NamesModel):
    """A reward-model folder, an import path, or the file of an ensemble."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        return reward_files(**{field: value})

    def require_memory(self, field: str, value: Any, config: Any, processes: Any) -> None:
        """See `rlhf.stage.fields.MemoryCheck`; an ensemble's members are held side by side."""
        from rlhf.models.checkpoint.memory import held_bytes, require_memory

        folders = {name: path for name, path in self.inputs(field, value, config).items() if path.is_dir()}
        if folders:
            dtype = getattr(config, "dtype", "float32")
            sizes = {name: held_bytes(path, dtype=dtype) for name, path in folders.items()}
            require_memory(sizes, processes, trained=False)


Reward = Annotated[str, RewardSpec()]
