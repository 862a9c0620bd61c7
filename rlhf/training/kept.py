"""What of a broken-off training the next attempt of its stage takes over (see `rlhf.stage.kept`). Light: no torch.

How the states are written and taken up is in `rlhf.training.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.metrics import METRICS_FILE, TENSORBOARD_FOLDER
from rlhf.stage import Kept, Stage, options_of

if TYPE_CHECKING:
    from accelerate import Accelerator

RESUME = "resume"
"""The folder of states in a stage's."""


@dataclass(frozen=True)
class States:
    """Where a supervised training keeps its states, and after how many steps it writes one."""

    folder: Path
    every: int


def kept_states(stage: Stage, accelerator: Accelerator, beside: Sequence[str] = ()) -> Kept:
    """What the next attempt of a stage takes over: training states and figures, if it would do the same.

    The number of processes changes a result by rounding alone, but for DeepSpeed, whose states are cut into as many
    parts.

    Args:
        stage: its config and its inputs decide.
        beside: what else the stage writes line by line, beside its metrics.
    """
    values, rounding = options_of(stage.config, stage.inputs)
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    launch = {
        "processes": accelerator.num_processes,
        "zero_stage": None if deepspeed is None else int(deepspeed.zero_stage),
        "mixed_precision": accelerator.mixed_precision,
    }
    return Kept(
        RESUME,
        "training states",
        inputs=tuple(stage.inputs),
        values=values | launch,
        rounding=rounding if deepspeed is not None else {*rounding, "processes"},
        beside=(METRICS_FILE, TENSORBOARD_FOLDER, *beside),
        pattern="step-*",
    )
