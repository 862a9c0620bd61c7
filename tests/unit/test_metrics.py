"""A stage's figures: the JSON lines, TensorBoard's events, and other trackers by name."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf.errors import InputError
from rlhf.iteration.ledger import output_digest
from rlhf.metrics import TENSORBOARD_FOLDER, MetricsLog, asked_trackers, keep_before, read_metrics
from rlhf.stage.digests import FileDigests
from rlhf.training.accelerator import make_accelerator


def test_figures_are_in_the_file_and_on_the_board_after_each_step(tmp_path):
    log = MetricsLog(tmp_path, make_accelerator())
    log.log(0, loss=2.0, why="start")
    log.log(1, loss=math.nan, kl=0.5)
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 0, "loss": 2.0, "why": "start"},
        {"step": 1, "loss": None, "kl": 0.5},
    ]
    board = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload()
    assert {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]} == {
        "loss": [(0, 2.0)],
        "kl": [(1, 0.5)],
    }


def test_a_run_that_goes_on_writes_no_line_twice(tmp_path):
    first = MetricsLog(tmp_path, make_accelerator())
    for step in range(4):
        first.log(step, loss=0.1 * step)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')  # a kill
    again = MetricsLog(tmp_path, make_accelerator())
    again.go_on(2)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
    again.log(2, loss=5.0)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.0, 0.1, 5.0]
    board = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload()
    assert [e.step for e in board.Scalars("loss")] == [0, 1, 2]


def test_the_events_do_not_change_a_stages_digest(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_text("w")
    before = output_digest(FileDigests(tmp_path).of_folder(tmp_path))
    MetricsLog(tmp_path, make_accelerator()).log(0, loss=1.0)
    assert output_digest(FileDigests(tmp_path).of_folder(tmp_path)) == before


def test_other_trackers_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb"])
    monkeypatch.setenv("RLHF_TRACKERS", "wandb, ")
    assert asked_trackers() == ["wandb"]
    monkeypatch.setenv("RLHF_TRACKERS", "wandb,aim")
    with pytest.raises(InputError, match="RLHF_TRACKERS: aim is not installed"):
        asked_trackers()
    monkeypatch.setenv("RLHF_TRACKERS", "wundb")
    with pytest.raises(InputError, match=r"must name some of .*wandb.*got 'wundb'"):
        asked_trackers()


def test_a_trackers_figures_pass_through_accelerate(tmp_path):
    accelerator = make_accelerator()
    passed = []
    accelerator.trackers = [object()]
    accelerator.log = lambda figures, step: passed.append((step, figures))
    MetricsLog(tmp_path, accelerator).log(3, loss=1.5, note="text")
    assert passed == [(3, {"loss": 1.5})]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "loss": 1.5, "note": "text"}


def test_a_line_may_hold_what_unicode_calls_a_line_break(tmp_path):
    file = tmp_path / "samples.jsonl"
    rows = [{"step": step, "answer": "a\u2028b\x85c"} for step in range(3)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    keep_before(file, 2)
    assert read_metrics(file) == rows[:2]
