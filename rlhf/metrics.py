"""Where a stage's figures go: one JSON line a step in `metrics.jsonl`, and trackers (TensorBoard, …) by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator


class MetricsLog:
    """Append-only figures of one stage. Only the main process writes; the others' calls do nothing.

    Args:
        folder: the stage's folder; the file is `metrics.jsonl` in it.
        accelerator: decides who is main, and passes the figures on to its trackers.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path = folder / "metrics.jsonl"
        self.accelerator = accelerator

    def log(self, step: int, **figures: Any) -> None:
        """Write one line {"step": step, **figures}; non-finite numbers become null (JSON has no NaN)."""
        if not self.accelerator.is_main_process:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **clean}, ensure_ascii=False) + "\n")
        if self.accelerator.trackers:
            self.accelerator.log({k: v for k, v in clean.items() if isinstance(v, (int, float))}, step=step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; an unfinished last line (a kill) is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
