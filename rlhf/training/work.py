"""A stage's work on the processes of its launch, and what it says of a training at its end. Light: torch when called.

with training_work(stage) as accelerator:
    result = train(model, rows, task, config.optimizer, accelerator, stage.log, …)
    close_training(stage, result)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlhf.stage import Kept, Stage
from rlhf.training.accelerator import make_accelerator
from rlhf.training.kept import kept_states
from rlhf.training.suspicion import suspicious_training

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf.training.loop import TrainingResult


@contextmanager
def launched_work(stage: Stage, *kept: Kept) -> Iterator[Accelerator]:
    """`stage.work` on all processes of the launch: their accelerator, seeded with the config's `seed` (0: it has none).

    Args:
        kept: kinds of work that the next attempt takes over (`rlhf.stage.kept`).

    Raises:
        InputError, SuspiciousError: see `Stage.work`.
    """
    accelerator = _accelerator_of(stage)
    with stage.work(accelerator, *kept):
        yield accelerator


@contextmanager
def training_work(stage: Stage, *kept: Kept, beside: Sequence[str] = ()) -> Iterator[Accelerator]:
    """`launched_work` that trains: the next attempt takes over the training's states too.

    Args:
        beside: what else the stage writes line by line, beside its metrics.

    Raises:
        InputError, SuspiciousError: see `Stage.work`.
    """
    accelerator = _accelerator_of(stage)
    with stage.work(accelerator, *kept, kept_states(stage, accelerator, beside)):
        yield accelerator


def close_training(
    stage: Stage,
    result: TrainingResult,
    *,
    rows: int | None = None,
    left_out: Mapping[str, int] | None = None,
    figures: Mapping[str, float | int] | None = None,
) -> None:
    """The stage's closing block gets a training's rows, its loss, and what looks wrong about it.

    Args:
        rows: used; None: as many as it trained on.
        left_out: rows that were not, by reason.
        figures: said before those of the training.
    """
    stage.closing.rows(result.rows if rows is None else rows, left_out)
    stage.closing.figures(**{**(figures or {}), **result.figures()})
    if result.cut:
        stage.closing.show([f"rows_cut: {result.cut} of the rows are too long, and have lost their oldest turns"])
    stage.closing.suspect(suspicious_training(result))


def _accelerator_of(stage: Stage) -> Accelerator:
    return make_accelerator(seed=getattr(stage.config, "seed", 0))
