"""What a plan will take, memory and hours, from what is kept of a calibration and from finished stages."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.configuration import parse_config
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.disk import require_room
from rlhf.iteration.hours.counts import CHARACTERS_PER_TOKEN, Counts, Rows
from rlhf.iteration.hours.forecast import Forecast, forecast, total_words
from rlhf.iteration.hours.speed import Line, Speed
from rlhf.iteration.hours.work import tokens_of_a_pass, work_of
from rlhf.iteration.ledger import Record, is_driven, last_record, read_ledger
from rlhf.iteration.plan import PlannedStage, make_plan
from rlhf.start.calibrate import calibrated


def plan_forecast(
    config: IterativeConfig,
    stages: Sequence[PlannedStage],
    settings: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
    records: Sequence[Record] | None = None,
    to_run: Collection[str] = (),
) -> Forecast:
    """The forecast of a plan.

    Args:
        settings: stage -> its recipe's config (`rlhf.iteration.checks.check_plan`).
        calibration: what `rlhf.start.calibrate` keeps; None: there is none, and finished stages tell alone.
        records: of the ledger; None: they are read.
        to_run: finished stages that run again.
    """
    records = read_ledger(config.run / "ledger.jsonl") if records is None else records
    estimated = estimates(stages, settings, calibration) if calibration is not None else {}
    newest = (last_record(records, stage.name) for stage in stages) if is_driven(config.run) else ()
    running = {r["stage"]: max(0.0, time.time() - r["time"]) for r in newest if r and r["event"] == "started"}
    return forecast(stages, estimated, records, config.slots, to_run, running)


def estimates(
    stages: Sequence[PlannedStage], settings: Mapping[str, Any], calibration: Mapping[str, Any]
) -> dict[str, float]:
    """Stage -> seconds by the calibration; stages of which nothing is known are left out.

    The `data` step, which no model takes part in, takes what it took when the calibration did it.
    """
    speed = Speed.of(calibration["speed"])
    counts = Counts(stages, {name: Rows(**rows) for name, rows in calibration["rows"].items()}, settings)
    per_token = calibration.get("characters_per_token", CHARACTERS_PER_TOKEN)
    share = calibration.get("answer_share") or 1.0
    works = ((stage, work_of(stage, settings[stage.name], counts, per_token, share)) for stage in stages)
    found = {stage.name: work.seconds(speed, stage.processes) for stage, work in works if work is not None}
    if seconds := calibration.get("data_seconds"):
        found |= {stage.name: float(seconds) for stage in stages if stage.recipe == "prepare_data"}
    return found


def memory_words(
    stages: Sequence[PlannedStage],
    settings: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
    records: Sequence[Record],
) -> str:
    """What one process takes: in the training that takes most, by the calibration; and at most in finished stages."""
    said = []
    measured = None if calibration is None else calibration.get("training_memory_mb")
    passes = [(tokens, stage.name) for stage in stages if (tokens := tokens_of_a_pass(settings[stage.name]))]
    if measured and passes:
        tokens, name = max(passes)
        most = Line(**measured).seconds(1, tokens) / 1024
        said.append(f"{most:,.1f} GiB at most in {name}, by the calibration: {tokens:,.0f} tokens in a forward pass")
    newest = ((stage.name, last_record(records, stage.name)) for stage in stages)
    peaks = [(r["peak_memory_mb"], name) for name, r in newest if r is not None and r.get("peak_memory_mb")]
    if peaks:
        said.append(f"{max(peaks)[0] / 1024:,.1f} GiB at most in finished stages ({max(peaks)[1]})")
    return f"a process takes {'; '.join(said)}" if said else "not known: nothing is measured yet"


def what_it_takes(run: Path) -> list[str]:
    """The lines of `rlhf new` on memory, disk and hours, after the calibration of the run that it wrote."""
    config = parse_config(IterativeConfig, ["--config", str(run / "plan.yaml")])
    stages = make_plan(config)
    settings = check_plan(stages)
    calibration = calibrated(config)
    found = plan_forecast(config, stages, settings, calibration)
    return [
        f"memory    {memory_words(stages, settings, calibration, ())}",
        f"disk      {require_room(stages, [stage.name for stage in stages], config.run, config.keep)}",
        f"hours     {total_words(found, calibration)}",
    ]
