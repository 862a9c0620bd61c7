"""Where a stage's figures go: one JSON line a step in `metrics.jsonl`, TensorBoard, and other trackers by name.

    tensorboard --logdir runs/demo
    RLHF_TRACKERS=wandb accelerate launch recipes/ppo.py --config my_ppo.yaml     # any tracker that accelerate has

Trackers are asked for by the environment and not by the config: they change nothing that a stage computes, and the
driver's stages inherit them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


def asked_trackers() -> list[str]:
    """The names in `RLHF_TRACKERS`, parted by commas; InputError for one that accelerate does not know or lacks."""
    names = [name.strip() for name in os.environ.get("RLHF_TRACKERS", "").split(",") if name.strip()]
    if names:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        known = sorted(set(LOGGER_TYPE_TO_CLASS) - {"tensorboard"})
        installed = {str(tracker) for tracker in get_available_trackers()}
        for name in names:
            if name not in known:
                raise InputError(
                    f"RLHF_TRACKERS: must name some of {', '.join(known)} (TensorBoard is on), got {name!r}"
                )
            if name not in installed:
                raise InputError(f"RLHF_TRACKERS: {name} is not installed; install it, or leave it out")
    return names


class MetricsLog:
    """Append-only figures of one stage. Only the main process writes; the others' calls do nothing.

    Args:
        folder: the stage's folder; in it `metrics.jsonl`, and TensorBoard's events where that is installed.
        accelerator: decides who is main, and passes the figures on to its trackers.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path = folder / METRICS_FILE
        self.accelerator = accelerator
        self.board = self._open_board()
        if accelerator.log_with:
            accelerator.init_trackers("rlhf", init_kwargs={"wandb": {"name": folder.name.removesuffix(".partial")}})

    def go_on(self, step: int) -> None:
        """Drop what a broken-off attempt wrote of `step` and later: a run that goes on writes that again."""
        if self.accelerator.is_main_process and self.path.exists():
            keep_before(self.path, step)
            self.board = self._open_board(purge_step=step)

    def _open_board(self, purge_step: int | None = None) -> Any:
        if not self.accelerator.is_main_process or not importlib.util.find_spec("tensorboard"):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path.with_name(TENSORBOARD_FOLDER)), purge_step=purge_step)

    def log(self, step: int, **figures: Any) -> None:
        """Write one line {"step": step, **figures}; non-finite numbers become null (JSON has no NaN)."""
        if not self.accelerator.is_main_process:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **clean}, ensure_ascii=False) + "\n")
        numbers = {k: v for k, v in clean.items() if isinstance(v, (int, float))}
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()  # a stage that is killed has its events, and its folder can be renamed
        if self.accelerator.trackers:
            self.accelerator.log(numbers, step=step)


def keep_before(path: Path, step: int) -> None:
    """Leave of a JSON-lines file the whole lines whose "step" is below `step`; a reader never sees half of it."""
    if path.exists():
        kept = [row for row in read_metrics(path) if row["step"] < step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        os.replace(partial, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; an unfinished last line (a kill) is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):  # splitlines() also cuts at U+2028 inside a text
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
