"""The GPUs of this machine, dealt out to the stages that run on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf.errors import InputError

if TYPE_CHECKING:
    from rlhf.iteration.plan import PlannedStage


class Dealer:
    """Deals the GPUs out: no two stages that run at the same time have one in common.

    Args:
        gpus: of this machine, see `rlhf.launch.visible_gpus`.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self.gpus = tuple(gpus)
        self._free = list(gpus)

    def check(self, stage: PlannedStage) -> None:
        """InputError where a stage asks for GPUs that this machine does not have."""
        where, count, names = f"launch ({stage.name})", self.count(stage), _names(stage)
        if strange := [name for name in names if name not in self.gpus]:
            raise InputError(f"{where}: there is no GPU {strange[0]} here; there are {', '.join(self.gpus) or 'none'}")
        if count > len(self.gpus):
            asked = "asked for" if stage.launch.gpus is not None else "one a process"
            raise InputError(
                f"{where}: {count} GPUs, {asked}, and this machine has {len(self.gpus)}; name fewer processes or gpus, "
                "or a prefix that starts it elsewhere"
            )

    def take(self, stage: PlannedStage) -> tuple[str, ...] | None:
        """The GPUs of a stage that starts now; (): it has none. None: it has to wait until others give theirs back."""
        taken = _names(stage) or tuple(self._free[: self.count(stage)])
        if len(taken) < self.count(stage) or not set(taken) <= set(self._free):
            return None
        self._free = [name for name in self._free if name not in taken]
        return taken

    def give_back(self, taken: Sequence[str]) -> None:
        """What `take` gave is free again."""
        self._free = [name for name in self.gpus if name in self._free or name in taken]

    def deals_to(self, stage: PlannedStage) -> bool:
        """Whether it is for this machine to say which GPUs the stage sees."""
        return bool(self.gpus) and (stage.launch.gpus is not None or not stage.launch.prefix)

    def count(self, stage: PlannedStage) -> int:
        """How many GPUs it takes."""
        asked = stage.launch.gpus
        if asked is None:
            return stage.launch.processes if self.deals_to(stage) else 0
        return asked if isinstance(asked, int) else len(asked)


def _names(stage: PlannedStage) -> tuple[str, ...]:
    """The GPUs that its launch names, where it does."""
    asked = stage.launch.gpus
    return tuple(map(str, asked)) if isinstance(asked, tuple) else ()
