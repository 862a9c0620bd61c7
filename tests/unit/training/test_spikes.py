"""Bad batches: a step that stands out is found, its rows can be read, and it is taken, left out, or the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.ppo.config import PPOConfig
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import States
from rlhf.training.loop import Task, TrainingResult, steps_of, train
from rlhf.training.spikes import FAR, FEWEST, WINDOW, Spikes, SpikeWatch, z_score
from rlhf.training.step import StepFigures

BAD = 1000.0
ROWS = [float(i % 5) for i in range(80)]
SETTINGS: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 2, "schedule": "constant", "warmup_fraction": 0.0}


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return (model(torch.ones_like(batch["y"])[:, None])[:, 0] - batch["y"]).square().sum(), {}


TASK = Task(lambda rows: {"y": torch.tensor(rows)}, _loss, weight=lambda row: 1.0, length=lambda row: 1)


def test_z_scores_by_hand() -> None:
    before = [1.0, 3.0] * (FEWEST // 2)
    assert z_score(before, 10.0) == pytest.approx(8.0 / math.sqrt(FEWEST / (FEWEST - 1)))
    assert z_score([math.nan, *before], 10.0) == z_score(before, 10.0)
    assert z_score([500.0] * 3 + [2.0] * WINDOW, 2.5) == pytest.approx(0.5 / 0.04), "the last ones, 2 % at least"
    assert z_score(before[1:], 10.0) is None and z_score(before, math.inf) is None
    assert z_score([0.0] * FEWEST, 1.0) is None, "nothing has moved yet"
    seen = Spikes(list(before), list(before))
    assert seen.far(2.0, 2.0) == {} and seen.far(-100.0, 2.0) == {}, "below is no spike"
    assert set(seen.far(100.0, 2.0)) == {"loss"} and min(seen.far(100.0, 100.0).values()) > FAR


def test_a_smaller_step_at_an_epoch_s_end_is_not_judged(tmp_path: Path) -> None:
    """Before, a last step of one row stood out among those of 32."""
    seen = Spikes([1.0, 3.0] * FEWEST, [1.0, 3.0] * FEWEST)
    watch = SpikeWatch("train", "stop", seen, tmp_path / "metrics.jsonl", str, full=2, writes=True)
    far = StepFigures({"loss": 100.0}, 100.0, taken=True)
    assert not watch.saw(40, far, [BAD]) and not (tmp_path / "spikes.jsonl").exists() and len(seen.losses) == 41
    assert watch.refuse([BAD]) is None and (refuse := watch.refuse([BAD, BAD])) is not None and refuse(500.0, 1.0)


def _rows() -> tuple[list[float], int]:
    """Rows with a bad one, whose step it is: one of those after FEWEST."""
    for place in range(len(ROWS)):
        rows = [*ROWS[:place], BAD, *ROWS[place + 1 :]]
        step = next(n for n, some in enumerate(steps_of(rows, OptimizerConfig(**SETTINGS), 0)) if BAD in some)
        if step > FEWEST + 5:
            return rows, step
    raise AssertionError


def _run(folder: Path, on_spike: str, states: Path | None = None, until: int | None = None) -> tuple[Any, Any]:
    """The result, and the weight after each step."""
    torch.manual_seed(0)
    model, weights = nn.Linear(1, 1), []

    def after(step: int, total: int, module: nn.Module) -> None:
        weights.append(model.weight.item())
        if step == until:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    accelerator = make_accelerator()
    config = OptimizerConfig(**SETTINGS, on_spike=on_spike)  # type: ignore[arg-type]
    kept = None if states is None else States(states, 4)
    log = MetricsLog(folder, accelerator)
    return train(model, _rows()[0], TASK, config, accelerator, log, after_step=after, states=kept, shown=str), weights


@pytest.mark.parametrize("on_spike", ["keep", "skip"])
def test_the_rows_of_a_bad_step_can_be_read_and_it_is_taken_or_left_out(tmp_path: Path, on_spike: str) -> None:
    bad = _rows()[1]
    result, weights = _run(tmp_path, on_spike)
    (spike,) = read_metrics(tmp_path / "spikes.jsonl")
    assert (spike["step"], spike["taken"]) == (bad, on_spike == "keep") and "1000.0" in spike["rows"]
    assert set(spike["z"]) == {"loss", "grad_norm"} and spike["loss"] > 1e5
    assert (weights[bad] == weights[bad - 1]) == (on_spike == "skip")
    assert isinstance(result, TrainingResult) and result.figures()["spikes"] == 1 and result.skipped == 0
    assert len(result.losses) == len(result.norms) == 40


def test_it_ends_before_the_step_and_says_where_the_rows_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train: step \d+ stands out.*loss .* and grad_norm .*spikes\.jsonl: mend"):
        _run(tmp_path, "stop")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == _rows()[1], "the step is not taken"


def test_broken_off_it_finds_and_leaves_out_the_same(tmp_path: Path) -> None:
    whole, weights = _run(tmp_path / "whole", "skip")
    bad = _rows()[1]
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "part", "skip", tmp_path / "states", until=bad + 1)
    again, rest = _run(tmp_path / "part", "skip", tmp_path / "states")
    assert rest == weights[-len(rest) :] and again.norms == whole.norms and again.spikes == whole.spikes == 1
    assert (tmp_path / "part" / "spikes.jsonl").read_text() == (tmp_path / "whole" / "spikes.jsonl").read_text()


def test_ppo_s_steps_have_no_fixed_rows() -> None:
    with pytest.raises(InputError, match="on_spike: skip is for trainings on fixed rows"):
        PPOConfig(optimizer=OptimizerConfig(on_spike="skip"))
