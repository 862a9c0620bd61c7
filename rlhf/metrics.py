"""Where a stage's figures go: one JSON line a step in `metrics.jsonl`, TensorBoard, and other trackers by name.

    tensorboard --logdir runs/demo
    accelerate launch recipes/ppo.py --config my_ppo.yaml --trackers wandb     # any tracker that accelerate has

In a run of several stages each stage is a run of the tracker's, named as its folder, and all of them are one group.
Trackers change nothing that a stage computes. They are named in the config, or by RLHF_TRACKERS, parted by commas.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
"""Those of accelerate's beside TensorBoard, which is on where it is installed; each is the name of its package too."""
PROJECT = "rlhf"


def asked_trackers(named: Sequence[str] = ()) -> tuple[str, ...]:
    """Those of a config, then those that RLHF_TRACKERS names. Loads none of them.

    Raises:
        InputError: accelerate has no such tracker, or its package is not installed.
    """
    found = dict.fromkeys(named, "trackers")
    for name in os.environ.get("RLHF_TRACKERS", "").split(","):
        if name.strip():
            found.setdefault(name.strip(), "RLHF_TRACKERS")
    for name, option in found.items():
        if name not in (*TRACKERS, TENSORBOARD_FOLDER):
            near = difflib.get_close_matches(str(name), TRACKERS, 1, 0.5)
            meant = f"did you mean {near[0]}?" if near else f"name some of {', '.join(TRACKERS)} (TensorBoard is on)"
            raise InputError(f"{option}: there is no tracker {name!r}; {meant}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{option}: {name} is not installed; `pip install {name}`, or leave it out")
    return tuple(name for name in found if name != TENSORBOARD_FOLDER)


@dataclass(frozen=True)
class Tracked:
    """What trackers are told of a stage.

    Args:
        trackers: their names.
        group: of the stages of one run: the name of its folder.
        stage: its name in that run.
        home: folder for what trackers write on this machine, beside the stages.
        settings: option -> value, plain.
    """

    trackers: Sequence[str]
    group: str
    stage: str
    home: Path
    settings: Mapping[str, Any]


def open_trackers(tracked: Tracked) -> list[Any]:
    """accelerate's trackers, started. InputError where one does not start, which nothing is computed without."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    opened = []
    for name in tracked.trackers:
        project, options = _options_of(name, tracked)
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](project, **options)
            tracker.start()
            if name == "comet_ml":  # takes neither when it is opened
                tracker.tracker.set_name(tracked.stage)
                tracker.tracker.add_tag(tracked.group)
            tracker.store_init_configuration(dict(tracked.settings))
        except Exception as error:  # each raises its own kinds
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"trackers: {name} does not start ({why}); log in to it, or leave it out") from error
        opened.append(tracker)
    return opened


def _options_of(name: str, tracked: Tracked) -> tuple[str, dict[str, Any]]:
    """What accelerate calls the run (of most trackers the project), and the tracker's own words for group and name."""
    stage, group = tracked.stage, tracked.group
    options: dict[str, tuple[str, dict[str, Any]]] = {
        "aim": (stage, {"logging_dir": str(tracked.home), "experiment": group}),
        "clearml": (f"{PROJECT}/{group}", {"task_name": stage, "tags": [group]}),
        "comet_ml": (PROJECT, {}),
        "dvclive": (PROJECT, {"dir": str(tracked.home / "dvclive" / stage), "save_dvc_exp": False}),
        "mlflow": (f"{PROJECT}/{group}", {"run_name": stage, "tags": {"group": group}}),
        "swanlab": (PROJECT, {"experiment_name": stage, "group": group}),
        "trackio": (PROJECT, {"name": stage, "group": group}),
        "wandb": (PROJECT, {"name": stage, "group": group}),
    }
    return options[name]


class MetricsLog:
    """Append-only figures of one stage. Only the main process writes; the others' calls do nothing.

    Args:
        folder: the stage's folder; in it `metrics.jsonl`, and TensorBoard's events where that is installed.
        accelerator: decides who is main.
        tracked: for trackers beside TensorBoard; None: there are none.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, tracked: Tracked | None = None) -> None:
        self.path = folder / METRICS_FILE
        self.accelerator = accelerator
        self.board = self._open_board()
        self.trackers = open_trackers(tracked) if tracked is not None and accelerator.is_main_process else []

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
        self._tell(lambda tracker: tracker.log(numbers, step=step))

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Give the trackers the stage's closing figures, as closing/<name>, and end them."""
        last = {f"closing/{name}": value for name, value in figures.items() if isinstance(value, (int, float))}
        if last:
            self._tell(lambda tracker: tracker.log(last))
        self._tell(lambda tracker: tracker.finish())
        self.trackers = []

    def _tell(self, what: Callable[[Any], object]) -> None:
        """Tell every tracker; one that fails, as its server is gone, ends no stage: it is told no more."""
        for tracker in list(self.trackers):
            try:
                what(tracker)
            except Exception as error:  # each raises its own kinds
                self.trackers.remove(tracker)
                why = " ".join(str(error).split())[:200] or type(error).__name__
                name = getattr(tracker, "name", type(tracker).__name__)
                print(
                    f"trackers: {name} failed ({why}) and is told no more; {self.path} has all figures", file=sys.stderr
                )


def keep_before(path: Path, step: int) -> None:
    """Leave of a JSON-lines file the whole lines whose "step" is below `step`; a reader never sees half of it."""
    if path.exists():
        kept = [row for row in read_metrics(path) if row["step"] < step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        os.replace(partial, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` up to the first that is none: an unfinished last one (a kill) is left out."""
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # splitlines() also cuts at U+2028 in a text
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows
