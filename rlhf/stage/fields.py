"""What a field of a config is, beyond its type: said by `Annotated` where the field is declared.

    policy: Checkpoint                                     # rlhf.models.checkpoint: Annotated[Path, WholeCheckpoint()]
    data: DataSource                                       # rlhf.data.fields: a file is an input, a hub name is not
    micro_batch_size: Annotated[int, Effect.ROUNDING] = 8  # may change between a kill and the next start

A type that names something to read carries an `InputCheck`; it lives in the room of what it checks. Here protocols
alone are known. A kind of field of your own is a class with one method, and needs no change here. A check at a group of
options gets the whole group.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Protocol, runtime_checkable

from rlhf.imports import CODE, code_inputs
from rlhf.paths import require_files
from rlhf.shorthand import bare_field, hints_of


class Effect(enum.Enum):
    """How far an option changes what a stage computes; one without an effect of its own decides it."""

    NONE = "not at all: where it writes, how often, how much it keeps"
    ROUNDING = "by rounding alone: sizes of batches whose mean is taken over the whole step"


@runtime_checkable
class InputCheck(Protocol):
    """Stands in `Annotated[type, check]` of a field that names something to read."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """What the stage reads of this machine through the field: name -> path, named after the field.

        Args:
            field: its dotted name, as on the command line.
            value: the field's, never None.
            config: the dataclass that has the field, for checks that depend on its other fields.

        Raises:
            InputError: naming the field; it is not there, or not what it has to be.
        """
        ...


@runtime_checkable
class MemoryCheck(Protocol):
    """An `InputCheck` of what is loaded whole: it knows what that takes at least."""

    def require_memory(self, field: str, value: Any, config: Any, processes: Any) -> None:
        """InputError where that is more than a process has.

        Args:
            field, value, config: as of `InputCheck.inputs`.
            processes: the accelerator of the launch.
        """
        ...


@runtime_checkable
class RowsCheck(Protocol):
    """An `InputCheck` of rows, which may lie on the hub."""

    def dataset(self, value: Any) -> str | None:
        """Their name there; None: they are files of this machine."""
        ...


class ExistingPath:
    """A file or folder that must exist; all of it, or some files in it, are read."""

    def __init__(self, *inside: str) -> None:
        self.inside = inside

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `InputCheck`; of several files, <field>.<file> is the name of each."""
        found = {field: Path(value) / "".join(self.inside)}
        if len(self.inside) > 1:
            found = {f"{field}.{name}": Path(value) / name for name in self.inside}
        require_files(**found)
        return found


class InEachRun:
    """The same check in each of the config's `runs`, for which {run} in the value stands; as field.0, field.1, …"""

    def __init__(self, check: InputCheck) -> None:
        self.check = check

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `InputCheck`."""
        found: dict[str, Path] = {}
        for number, run in enumerate(config.runs):
            found |= self.check.inputs(f"{field}.{number}", in_run(value, run), config)
        return found

    def require_memory(self, field: str, value: Any, config: Any, processes: Any) -> None:
        """See `MemoryCheck`."""
        if isinstance(self.check, MemoryCheck):
            for number, run in enumerate(config.runs):
                self.check.require_memory(f"{field}.{number}", in_run(value, run), config, processes)


def inputs_in_run(inputs: Mapping[str, Path], number: int) -> dict[str, Path]:
    """Those of a stage's inputs that an `InEachRun` found in the run of this number."""
    return {name: path for name, path in inputs.items() if name.endswith(f".{number}")}


def in_run(value: Any, run: str) -> Any:
    """A path, paths, or a group of options with all its paths, with the run's folder in the place of {run}."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: in_run(part, run) for name, part in parts.items()})
    if isinstance(value, tuple):
        return tuple(in_run(part, run) for part in value)
    if isinstance(value, dict):
        return {name: in_run(part, run) for name, part in value.items()}
    return type(value)(str(value).replace("{run}", run)) if isinstance(value, str | Path) else value


InputPath = Annotated[Path, ExistingPath()]


def inputs_of(config: Any) -> dict[str, Path]:
    """Everything that a config's fields name to be read: dotted name -> path, in the order of the fields.

    The file of a user's own function or class is read too, as <field>.code, not what that file imports.

    Raises:
        InputError: of the first field that names something missing or wrong. Loads nothing heavy.
    """
    found: dict[str, Path] = {}
    for field in _leaves(config):
        for check in field.checks:
            found |= check.inputs(field.name, field.value, field.owner)
        if isinstance(field.value, str | Path):
            found |= code_inputs(field.name, os.fspath(field.value))
    return found


def require_memory_of(config: Any, processes: Any) -> None:
    """Ask whether everything that a config's fields name to be loaded fits, each by itself, before anything is.

    Raises:
        InputError: of the first that certainly does not.
    """
    for field in _leaves(config):
        for check in field.checks:
            if isinstance(check, MemoryCheck):
                check.require_memory(field.name, field.value, field.owner, processes)


def starts_of(config: Any, inputs: Mapping[str, Path]) -> list[str]:
    """Names of those inputs that the stage's checkpoint comes from: what it trains, else the policies that it reads."""
    trained = [field.name for field in _leaves(config) if any(getattr(c, "trained", False) for c in field.checks)]
    files = [name for name in inputs if not name.endswith(CODE)]
    read = [name for name in files if name.partition(".")[0] in ("policy", "checkpoint", "checkpoints")]
    return [name for name in trained if name in inputs] or read


def datasets_of(config: Any) -> list[str]:
    """Hub names of the rows that a config's fields name; files of this machine are inputs."""
    found = [(check, field.value) for field in _leaves(config) for check in field.checks]
    names = [check.dataset(value) for check, value in found if isinstance(check, RowsCheck)]
    return [name for name in dict.fromkeys(names) if name is not None]


def options_of(config: Any, inputs: Mapping[str, Path]) -> tuple[dict[str, Any], set[str]]:
    """The options that decide a result, dotted name -> plain value, and which of them do so by rounding alone.

    Options of no effect are left out, and those that stand for one of `inputs`, whose content says more.
    """
    values: dict[str, Any] = {}
    rounding: set[str] = set()
    for field in _leaves(config):
        if field.effect is Effect.NONE or field.name in inputs:
            continue
        values[field.name] = os.fspath(field.value) if isinstance(field.value, os.PathLike) else field.value
        if field.effect is Effect.ROUNDING:
            rounding.add(field.name)
    return values, rounding


@dataclasses.dataclass(frozen=True)
class _Leaf:
    name: str
    value: Any
    owner: Any
    checks: tuple[InputCheck, ...]
    effect: Effect | None


def _leaves(config: Any, group: str = "", effect: Effect | None = None) -> Iterator[_Leaf]:
    """Those of a group of options; the field that a bare text fills is called as the group is, as users give it."""
    kind: type = type(config)
    hints = hints_of(kind, notes=True)
    bare = bare_field(kind) if group else None
    for field in dataclasses.fields(config):
        name = field.name if not group else group if field.name == bare else f"{group}.{field.name}"
        yield from _of_value(name, getattr(config, field.name), hints[field.name], config, effect)


def _of_value(name: str, value: Any, hint: Any, owner: Any, effect: Effect | None) -> Iterator[_Leaf]:
    """One value's leaves: groups, lists and names with values are gone into."""
    checks, effect = _said_of(hint, effect)
    if dataclasses.is_dataclass(value):
        yield _Leaf(name, value, owner, checks, Effect.NONE)
        yield from _leaves(value, name, effect)
    elif isinstance(value, (tuple, list)) and (items := _items_hint(hint)) is not None:
        for number, item in enumerate(value):
            yield from _of_value(f"{name}.{number}", item, items, owner, effect)
    elif isinstance(value, dict) and value:
        items = _items_hint(hint)
        for key, item in value.items():
            yield from _of_value(f"{name}.{key}", item, items, owner, effect)
    else:
        yield _Leaf(name, value, owner, () if value is None else checks, effect)


def _said_of(hint: Any, effect: Effect | None) -> tuple[tuple[InputCheck, ...], Effect | None]:
    """The checks and the effect that a type's annotations name, through `| None`."""
    checks: tuple[InputCheck, ...] = ()
    for part in _parts(hint):
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, Effect):
                effect = note
            elif isinstance(note, InputCheck):
                checks += (note,)
    return checks, effect


def _parts(hint: Any) -> list[Any]:
    """A type with what is inside its `Annotated` and unions."""
    if typing.get_origin(hint) is Annotated:
        return [hint, *_parts(hint.__origin__)]
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return [part for one in typing.get_args(hint) for part in _parts(one)]
    return [hint]


def _items_hint(hint: Any) -> Any:
    """The type of a list's items, or of a dictionary's values."""
    for part in _parts(hint):
        arguments = typing.get_args(part)
        if typing.get_origin(part) in (tuple, list) and arguments[-1:] == (Ellipsis,):
            return arguments[0]
        if typing.get_origin(part) is dict:
            return arguments[1]
    return None
