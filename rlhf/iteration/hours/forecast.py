"""Seconds of every stage, of a whole plan, and of what is left of it: estimated, and put right by what is finished."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.iteration.ledger import Record, last_record
from rlhf.iteration.plan import PlannedStage, dependencies, start_order

SHORT = 5.0
"""Seconds below which a stage says nothing of how good an estimate is."""


@dataclass(frozen=True)
class Forecast:
    """What a plan takes.

    Args:
        estimated: stage -> seconds by the calibration alone; a stage of which nothing is known is left out.
        taken: finished stage -> seconds by the ledger.
        expected: stage that is not finished -> seconds, the estimate times what finished stages took over theirs; where
            there is no estimate, what the newest one of its recipe took.
        total, left: seconds of wall time of the plan and of the rest, as many processes at once as there are slots.
        running: stage at work -> seconds since it began, which `left` counts down.
        unknown: stages that neither has.
    """

    estimated: Mapping[str, float]
    taken: Mapping[str, float]
    expected: Mapping[str, float]
    total: float
    left: float
    running: Mapping[str, float]
    unknown: Sequence[str]


def forecast(
    stages: Sequence[PlannedStage],
    estimated: Mapping[str, float],
    records: Sequence[Record],
    slots: int,
    to_run: Collection[str] = (),
    running: Mapping[str, float] | None = None,
) -> Forecast:
    """Of a plan with the ledger's records of it; `to_run` are finished stages that run again, `running` those at work
    and the seconds since they began."""
    running = running or {}
    newest = {stage.name: last_record(records, stage.name) for stage in stages}
    ended = {name: r for name, r in newest.items() if r is not None and r["event"] == "finished"}
    once = {name: float(record["seconds"]) for name, record in ended.items() if "seconds" in record}
    taken = {name: seconds for name, seconds in once.items() if name not in to_run}
    waiting = [stage for stage in stages if stage.name not in taken]
    expected = {}
    for stage in waiting:
        same = [one for one in stages if one.recipe == stage.recipe and one.name in taken]
        if stage.name in once:
            expected[stage.name] = once[stage.name]
        elif stage.name in estimated:
            ratio = _ratio(same, estimated, taken) or _ratio(stages, estimated, taken) or 1.0
            expected[stage.name] = ratio * estimated[stage.name]
        elif same:
            expected[stage.name] = taken[same[-1].name]
    rest = {name: max(0.0, seconds - running.get(name, 0.0)) for name, seconds in expected.items()}
    return Forecast(
        estimated=estimated,
        taken=taken,
        expected=expected,
        total=makespan(stages, {**taken, **expected}, slots),
        left=makespan(waiting, rest, slots, running),
        running=running,
        unknown=[stage.name for stage in waiting if stage.name not in expected],
    )


def _ratio(stages: Sequence[PlannedStage], estimated: Mapping[str, float], taken: Mapping[str, float]) -> float | None:
    """Geometric mean of taken over estimated; None where no stage tells."""
    pairs = [(taken[s.name], estimated[s.name]) for s in stages if s.name in taken and s.name in estimated]
    logs = [math.log(took / said) for took, said in pairs if min(took, said) >= SHORT]
    return math.exp(sum(logs) / len(logs)) if logs else None


def makespan(
    stages: Sequence[PlannedStage], seconds: Mapping[str, float], slots: int, running: Collection[str] = ()
) -> float:
    """Seconds until all are done, started as the driver does (`rlhf.iteration.plan.start_order`), as slots allow.

    Args:
        seconds: of each; a stage without takes none.
        running: those that are at work.
    """
    needs, waiting = dependencies(stages), start_order(stages, slots)
    waiting.sort(key=lambda stage: stage.name not in running)
    ends: list[tuple[float, PlannedStage]] = []
    done: set[str] = set()
    now = 0.0
    while waiting or ends:
        for stage in list(waiting):
            if not done.issuperset(needs[stage.name]):
                continue
            busy = sum(one.processes for _, one in ends)
            if busy and busy + stage.processes > slots:
                break
            ends.append((now + seconds.get(stage.name, 0.0), stage))
            waiting.remove(stage)
        ended = min(ends, key=lambda one: one[0])
        ends.remove(ended)
        now = ended[0]
        done.add(ended[1].name)
    return now


def clock(seconds: float) -> str:
    """Hours and minutes, as 3 h 05 min, 12 min, 40 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def stage_words(found: Forecast, name: str) -> str:
    """What is known of one stage's time, in words; may be empty."""
    if name in found.taken:
        said = f", {clock(found.estimated[name])} were estimated" if name in found.estimated else ""
        return f"; took {clock(found.taken[name])}{said}"
    begun = f" for {clock(found.running[name])}" if name in found.running else ""
    about = f"; about {clock(found.expected[name])}" if name in found.expected else ""
    return begun + about + (" in all" if begun and about else "")


def total_words(found: Forecast, calibration: Mapping[str, Any] | None, most: float = 0.0) -> str:
    """The line of a whole plan; `most`: seconds to go where every stage runs again that may have to."""
    if not found.expected and not found.taken:
        return "not known: nothing is measured yet, and nothing is finished"
    least = "at least " if found.unknown else ""
    basis = [*(["the calibration"] if calibration else []), *(["finished stages"] if found.taken else [])]
    beyond = f" (up to {clock(most)} where what is made anew comes out another)" if most > found.left + 1 else ""
    said = f"{least}{clock(found.total)} in all, {least}{clock(found.left)} to go{beyond}, by {' and '.join(basis)}"
    return said + (f"; nothing is known yet of {', '.join(found.unknown)}" if found.unknown else "")
