"""A stage that trains, on the page: its loss, what it learns to tell apart, and its gradient."""

from __future__ import annotations

from rlhf.report.drawing.figures import BLUE, GREY, INK, Panel, Series, lines
from rlhf.report.run.reading import Training


def training_panels(stage: Training) -> list[Panel]:
    """Loss, the accuracy of a reward model or of DPO on each step's pairs, and the gradient's norm before clipping."""
    x = [float(row.get("step", i)) for i, row in enumerate(stage.metrics)]

    def panel(title: str, colour: str, key: str, note: str, percent: bool = False) -> Panel | None:
        series = Series(title, colour, x, [row.get(key) for row in stage.metrics], markers=False)
        return lines(title, [series], x_label="step", percent=percent, note=note)

    found = [
        panel("Loss", BLUE, "loss", "Of each step's rows."),
        panel("Accuracy", INK, "accuracy", "Share of a step's pairs whose chosen answer is preferred.", percent=True),
        panel("Gradient norm", GREY, "grad_norm", "Before clipping. A spike is a batch out of its kind."),
    ]
    return [panel for panel in found if panel is not None]
