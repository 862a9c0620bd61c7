"""How a plan's stages are started: one group of settings, `launch`, by the name of a step or recipe. Light: no torch.

    launch:
      default: {retries: 1}
      rewards: {accelerate: ds_configs/accelerate_zero2.yaml, processes: 8}
      ppo:
        accelerate: ds_configs/accelerate_zero3.yaml
        machines: 2
        processes: 16
        prefix: srun --nodes 2 --ntasks-per-node 1
        env: {NCCL_SOCKET_IFNAME: eth0}
      evaluate: {gpus: 1}

What nobody says is taken from `default`, else from `Launch`; null is as if nobody said it. Nothing of it makes a
finished stage run again, but for a `mixed_precision` that is asked for and is not the one that the stage was computed
in.
"""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import InputError
from rlhf.iteration.steps import ALIASES
from rlhf.paths import why_no_file
from rlhf.shipped import shipped

DEFAULT = "default"
IN_ONE_PROCESS = {
    "average_policies",
    "hh_data",
    "leaderboard",
    "merge_adapter",
    "prepare_data",
    "refusal_detector",
    "simple_text_data",
    "simulated_safety_data",
    "simulated_world",
    "time_awareness",
}
"""The recipes that open their stage for one process: they do not share their work."""
OF_SEVERAL = ("processes", "machines", "accelerate", "gpus", "prefix")
PRECISIONS = ("no", "bf16", "fp16")
SAID_ELSEWHERE = {"CUDA_VISIBLE_DEVICES": "gpus", "ACCELERATE_MIXED_PRECISION": "mixed_precision"}


@dataclass(frozen=True)
class Launch:
    """How a stage is started.

    Args:
        processes: over all its machines; default: the accelerate file's num_processes, else 1.
        machines: that they run on, as many on each; default: the accelerate file's num_machines, else 1.
        gpus: of this machine, how many, or a list of which ones; default: one a process where there are GPUs and no
            prefix is given, which may start the stage elsewhere. 0: none.
        accelerate: a file that `accelerate config` wrote, or one of ds_configs/.
        mixed_precision: no, bf16 or fp16; default: the accelerate file's, else bf16 on a GPU that computes in it,
            else no.
        prefix: command that the stage's command is given to, such as `srun --nodes 2 --ntasks-per-node 1`.
        env: variables of its environment.
        retries: how often it is started again after a failure that is not a mistake of the user's.
        retry_seconds: wait before the first of these starts; twice as long before each further one.
    """

    processes: int = 1
    machines: int = 1
    gpus: int | tuple[int, ...] | None = None
    accelerate: Path | None = None
    mixed_precision: str | None = None
    prefix: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    retries: int = 0
    retry_seconds: float = 10.0

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing but a number of processes here."""
        return not (self.accelerate or self.prefix or self.env)


FIELDS = tuple(one.name for one in fields(Launch))


class Launches:
    """The launches of a plan, checked field by field.

    Args:
        given: name of a step, a recipe or `default` -> fields of `Launch`, those that are said.
        slots: processes at once, over all stages.

    Raises:
        InputError: an unknown field, or a value that it cannot have.
    """

    def __init__(self, given: Mapping[str, Any], slots: int) -> None:
        self.slots = slots
        self.names = set(given) - {DEFAULT}
        self._said = {name: _read(f"launch.{name}", content) for name, content in given.items()}

    def of(self, step: str, recipe: str) -> Launch:
        """The launch of a step: what is said of it before what is said of its recipe, and that before the default.

        A recipe of one process takes nothing from the default that is said for several.

        Raises:
            InputError: the accelerate file or the prefix's command is not there, or fields do not go together.
        """
        groups = [name for name, steps in ALIASES.items() if step in steps]
        said: dict[str, Any] = {}
        for name in (DEFAULT, recipe, *groups, step):
            own = self._said.get(name, {})
            if name == DEFAULT and recipe in IN_ONE_PROCESS:
                own = {one: value for one, value in own.items() if one not in OF_SEVERAL}
            said |= own | {"env": {**said.get("env", {}), **(own.get("env") or {})}}
        said = {name: value for name, value in said.items() if value is not None}
        where = f"launch.{next((name for name in (step, *groups, recipe) if name in self._said), DEFAULT)}"
        file = said.get("accelerate")
        content = {} if file is None else _accelerate_file(f"{where}.accelerate", file)
        launch = Launch(**_of_file(content) | said)
        self._check(where, launch)
        if recipe in IN_ONE_PROCESS and launch.processes > 1:
            raise InputError(f"{where}.processes: {recipe} runs in one process, got {launch.processes}; leave it out")
        return launch

    def _check(self, where: str, launch: Launch) -> None:
        """The fields together, and what they name."""
        if not 1 <= launch.processes <= self.slots:
            raise InputError(f"{where}.processes: must lie between 1 and slots ({self.slots}), got {launch.processes}")
        if launch.processes % launch.machines:
            raise InputError(
                f"{where}.machines: {launch.processes} processes cannot be dealt out evenly over {launch.machines}"
            )
        if launch.machines > 1 and not launch.prefix:
            raise InputError(
                f"{where}.prefix: {launch.machines} machines need a command that starts the stage's on each, such as "
                f"`srun --nodes {launch.machines} --ntasks-per-node 1`"
            )
        if launch.machines > 1 and launch.gpus is not None:
            raise InputError(f"{where}.gpus: are this machine's; what runs on several asks for them by its prefix")
        gpus = launch.gpus if isinstance(launch.gpus, int) else len(launch.gpus or ())
        if 0 < gpus < launch.processes:
            raise InputError(f"{where}.gpus: {launch.processes} processes need one each, got {gpus}")
        if launch.prefix and shutil.which(launch.prefix[0]) is None:
            raise InputError(f"{where}.prefix: there is no command {launch.prefix[0]!r}; name one, or leave it out")


def _read(where: str, content: Any) -> dict[str, Any]:
    """The fields that are said of one name, as `Launch` has them."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: must be fields with values, such as {{processes: 2}}, got {content!r}")
    for name in content:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, 1)
            way_out = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIELDS)}"
            raise InputError(f"{where}.{name}: no such field; {way_out}")
    return {n: None if value is None else _READERS[n](f"{where}.{n}", value) for n, value in content.items()}


def _count(least: int) -> Callable[[str, Any], int]:
    def read(where: str, value: Any) -> int:
        value = int(value) if isinstance(value, str) and value.isdigit() else value  # of a command line
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{where}: must be a whole number of at least {least}, got {value!r}")
        return value

    return read


def _gpus(where: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        names = tuple(_count(0)(where, one) for one in value)
        if len(set(names)) < len(names):
            raise InputError(f"{where}: names a GPU twice, got {list(value)}")
        return names or 0
    return _count(0)(where, value)


def _file(where: str, value: Any) -> Path:
    return shipped(Path(_text(where, value)))


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InputError(f"{where}: must be a text, got {value!r}")
    return os.fspath(value)


def _precision(where: str, value: Any) -> str:
    value = "no" if value is False else value  # YAML reads a bare no as false
    if value not in PRECISIONS:
        raise InputError(f"{where}: must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, got {value!r}")
    return str(value)


def _prefix(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise InputError(f"{where}: must be a command line, such as `srun --nodes 2`, got {value!r}")
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise InputError(f"{where}: is no command line ({error}), got {value!r}") from error


def _environment(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(one, str | int | float) for one in value.values()):
        raise InputError(f"{where}: must be variables with values, such as {{NCCL_DEBUG: INFO}}, got {value!r}")
    for name in value:
        if name in SAID_ELSEWHERE:
            raise InputError(f"{where}.{name}: is said by the field {SAID_ELSEWHERE[name]}")
        if not isinstance(name, str) or not name or "=" in name:
            raise InputError(f"{where}: {name!r} is no name of a variable")
    return {name: str(one) for name, one in value.items()}


def _seconds(where: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise InputError(f"{where}: must be seconds, 0 or more, got {value!r}")
    return float(value)


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "processes": _count(1),
    "machines": _count(1),
    "gpus": _gpus,
    "accelerate": _file,
    "mixed_precision": _precision,
    "prefix": _prefix,
    "env": _environment,
    "retries": _count(0),
    "retry_seconds": _seconds,
}


def _accelerate_file(where: str, path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{where}: {path} {why_no_file(path)}; name an existing file (those of ds_configs/ are shipped)"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{where}: {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping) or "distributed_type" not in content:
        raise InputError(f"{where}: {path} is no file of accelerate's (it has no distributed_type)")
    return content


def _of_file(content: Mapping[str, Any]) -> dict[str, Any]:
    """What an accelerate file says of a launch."""
    found = {"processes": content.get("num_processes"), "machines": content.get("num_machines")}
    precision = content.get("mixed_precision")
    found["mixed_precision"] = "no" if precision is False else precision
    return {name: value for name, value in found.items() if value is not None}
