"""A stage's figures: the JSON lines, TensorBoard's events, and other trackers by name."""

import inspect
import json
import math

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf.errors import InputError
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.ledger import output_digest
from rlhf.lifetime import RUN_MARK
from rlhf.metrics import (
    TENSORBOARD_FOLDER,
    TRACKERS,
    MetricsLog,
    Tracked,
    _options_of,
    asked_trackers,
    keep_before,
    read_metrics,
)
from rlhf.stage import StageConfig, open_stage
from rlhf.stage.digests import FileDigests
from rlhf.start.run import run_plan
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


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package of that name, and accelerate's tracker of it, which writes down what it is told."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delenv("RLHF_TRACKERS", raising=False)
    told = []

    class Tracker:
        def __init__(self, project, **options):
            self.opened = (project, options)

        def start(self):
            if told == ["refuse"]:
                raise RuntimeError("no login\nat all")
            told.append(("start", *self.opened))

        def store_init_configuration(self, settings):
            told.append(("settings", settings))

        def log(self, figures, step=None):
            told.append(("log", step, figures))

        def finish(self):
            told.append(("finish",))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    return told


def test_every_tracker_of_accelerate_s_can_be_named(tmp_path):
    """And takes the words that we have for the group of a run and the name of a stage."""
    assert {*TRACKERS, "tensorboard"} == set(LOGGER_TYPE_TO_CLASS)
    tracked = Tracked(TRACKERS, "demo", "v1/ppo", tmp_path / "demo", {})
    for name in TRACKERS:
        project, options = _options_of(name, tracked)
        inspect.signature(LOGGER_TYPE_TO_CLASS[name].__init__).bind(None, project, **options)
        assert name == "comet_ml" or all(word in f"{project} {options}" for word in ("demo", "v1/ppo"))


def test_trackers_by_name(wandb, monkeypatch):
    assert asked_trackers(["wandb", "tensorboard"]) == asked_trackers(["wandb"]) == ("wandb",)
    with pytest.raises(InputError, match="trackers: there is no tracker 'wundb'; did you mean wandb"):
        asked_trackers(["wundb"])
    with pytest.raises(
        InputError, match=r"trackers: there is no tracker '3'; name some of aim, .* \(TensorBoard is on"
    ):
        asked_trackers(["3"])
    monkeypatch.setattr("rlhf.metrics.TRACKERS", ("wandb", "lacking_here"))
    with pytest.raises(InputError, match="trackers: lacking_here is not installed; `pip install lacking_here`, or"):
        asked_trackers(["wandb", "lacking_here"])
    monkeypatch.setenv("RLHF_TRACKERS", "wandb, lacking_here")
    with pytest.raises(InputError, match="RLHF_TRACKERS: lacking_here is not installed"):
        asked_trackers()


def test_a_stage_tells_its_trackers_what_it_is_of_which_run_and_its_figures(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_MARK, str(tmp_path / "demo"))
    config = StageConfig(output=tmp_path / "demo" / "v1" / "ppo", trackers=("wandb",))
    stage = open_stage(config)
    with stage.work(make_accelerator()):
        stage.log.log(0, loss=2.0, note="text")
        stage.log.log(1, loss=math.inf, kl=0.5)
        stage.closing.figures(win_rate=0.75, best="v1")
    assert wandb == [
        ("start", "rlhf", {"name": "v1/ppo", "group": "demo"}),
        ("settings", {}),
        ("log", 0, {"loss": 2.0}),
        ("log", 1, {"kl": 0.5}),
        ("log", None, {"closing/win_rate": 0.75}),
        ("finish",),
    ]
    assert [row["loss"] for row in read_metrics(config.output / "metrics.jsonl")] == [2.0, None]


def test_a_tracker_that_fails_on_the_way_ends_no_stage(wandb, tmp_path, capsys, monkeypatch):
    stage = open_stage(StageConfig(output=tmp_path / "sft", trackers=("wandb",)))
    with stage.work(make_accelerator()):
        stage.log.log(0, loss=2.0)

        def gone(figures, step=None):
            raise ConnectionError("the server\nis gone")

        monkeypatch.setattr(stage.log.trackers[0], "log", gone)
        stage.log.log(1, loss=1.0)
        stage.log.log(2, loss=0.5)
    assert [row["loss"] for row in read_metrics(tmp_path / "sft" / "metrics.jsonl")] == [2.0, 1.0, 0.5]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trackers: ")]
    assert len(said) == 1 and "failed (the server is gone) and is told no more; " in said[0]
    assert [what[0] for what in wandb] == ["start", "settings", "log"]


def test_a_tracker_that_does_not_start_is_said_before_anything_is_computed(wandb, tmp_path):
    wandb.append("refuse")
    stage = open_stage(StageConfig(output=tmp_path / "sft", trackers=("wandb",)))
    with (
        pytest.raises(InputError, match=r"trackers: wandb does not start \(no login at all\); log in to it, or leave"),
        stage.work(make_accelerator()),
    ):
        pytest.fail("it is computed")
    assert not (tmp_path / "sft").exists()


def test_a_plan_s_trackers_are_looked_for_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.metrics.TRACKERS", ("lacking_here",))
    config = IterativeConfig(tmp_path / "run", tmp_path, trackers=("lacking_here",))
    with pytest.raises(InputError, match="trackers: lacking_here is not installed"):
        run_plan(config)
    assert not (tmp_path / "run").exists()


def test_a_line_may_hold_what_unicode_calls_a_line_break(tmp_path):
    file = tmp_path / "samples.jsonl"
    rows = [{"step": step, "answer": "a\u2028b\x85c"} for step in range(3)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    keep_before(file, 2)
    assert read_metrics(file) == rows[:2]


@pytest.mark.parametrize(
    "line", [b'{"step": 1, "lo', b"3", b"[]", b'{"loss": 1}', b'{"step": "x"}', b"\xff", b"9" * 6000]
)
def test_a_damaged_line_and_what_follows_it_is_left_out(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    keep_before(file, 5)
    assert read_metrics(file) == [{"step": 0}] and file.read_text() == '{"step": 0}\n'
