"""A stage that trains, on the page: its loss, what it learns to tell apart, its gradient, its spikes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, Panel, Series, lines
from rlhf.report.drawing.text import number
from rlhf.report.run.reading import Training
from rlhf.training.spikes import FAR, WINDOW

MOST_SPIKES = 6
MOST_ROWS, MOST_CHARACTERS = 24, 500
WHAT = {"loss": "loss", "grad_norm": "gradient norm"}


@dataclass(frozen=True)
class ShownSpike:
    """A step that stands out: a sentence, and the rows of its batch as texts, long ones cut; `left_out` of them."""

    sentence: str
    rows: list[str]
    left_out: int


def training_panels(stage: Training) -> list[Panel]:
    """Loss, the accuracy of a reward model or of DPO on each step's pairs, and the gradient's norm before clipping.

    Steps that stand out (spikes.jsonl) are points on the panel of what stands out.
    """
    x = [float(row.get("step", i)) for i, row in enumerate(stage.metrics)]

    def panel(title: str, colour: str, key: str, note: str, percent: bool = False) -> Panel | None:
        values = [row.get(key) for row in stage.metrics]
        own = [spike for spike in stage.spikes if key in (spike.get("z") or {})]
        series = [Series(title.lower(), colour, x, values, markers=False)]
        if own:
            places = [float(spike["step"]) for spike in own]
            series.append(Series("stands out", ORANGE, places, [spike[key] for spike in own], joined=False))
        return lines(title, series, x_label="step", percent=percent, from_zero=True, note=note)

    found = [
        panel("Loss", BLUE, "loss", "Of each step's rows; from batch to batch it jumps by chance."),
        panel("Accuracy", INK, "accuracy", "Share of a step's pairs whose chosen answer is preferred.", percent=True),
        panel(
            "Gradient norm",
            GREY,
            "grad_norm",
            f"Before clipping. A point stands over {FAR:g} standard deviations above the {WINDOW} steps before it.",
        ),
    ]
    return [panel for panel in found if panel is not None]


def shown_spikes(stage: Training) -> list[ShownSpike]:
    """The steps that stand out farthest, in their order."""
    farthest = sorted(stage.spikes, key=lambda spike: -max((spike.get("z") or {"": 0.0}).values()))[:MOST_SPIKES]
    found = []
    for spike in sorted(farthest, key=lambda spike: spike.get("step", 0)):
        above = " and ".join(
            f"{WHAT.get(name, name)} {number(spike.get(name), 2)}, {number(z, 1)} standard deviations above"
            for name, z in (spike.get("z") or {}).items()
        )
        rows = [
            text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …" for text in _texts(spike["rows"])
        ]
        size = f"{len(spike['rows'])} row" + ("" if len(spike["rows"]) == 1 else "s")
        taken = "taken" if spike.get("taken") else "not taken"
        found.append(
            ShownSpike(
                f"Step {spike.get('step')} ({size}): {above}; {taken}", rows[:MOST_ROWS], max(0, len(rows) - MOST_ROWS)
            )
        )
    return found


def _texts(rows: Any) -> Iterator[str]:
    """The rows of a batch as texts: a pair with what was said before, a packed row as its parts."""
    if isinstance(rows, str):
        yield rows
    elif isinstance(rows, list):
        for row in rows:
            yield from _texts(row)
    elif isinstance(rows, dict) and {"messages", "chosen", "rejected"} <= rows.keys():
        said = "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in rows["messages"])
        yield f"{said}\nchosen: {rows['chosen']}\nrejected: {rows['rejected']}"
    else:
        yield json.dumps(rows, ensure_ascii=False)
