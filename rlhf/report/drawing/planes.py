"""Points on a plane of two scores: a point a prompt, or one a version with its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.report.drawing.figures import MUTED, Panel, css, draw, ramp, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scatter(
    title: str,
    groups: Sequence[tuple[str, str, Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    diagonal: bool = True,
) -> Panel | None:
    """Points before (x) and after (y) with the line y = x; groups are (label, colour, x, y), drawn in order.

    Without the diagonal, x and y are two scores of one thing, on the same scale.
    """
    groups = [group for group in groups if len(group[2])]
    if not groups:
        return None
    import numpy as np

    values = np.concatenate([np.asarray([*x, *y]) for _, _, x, y in groups])
    room = 0.04 * float(np.ptp(values)) or 1.0
    low, high = float(values.min()) - room, float(values.max()) + room

    def paint(axes: Axes) -> None:
        axes.grid(False)
        if diagonal:
            axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for _, colour, x, y in groups:
            axes.plot(
                np.round(x, 3),
                np.round(y, 3),
                "o",
                color=colour,
                markersize=2.6,
                markeredgewidth=0,
                alpha=0.45,
                linestyle="none",
            )
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_box_aspect(1)
        for axis in (axes.xaxis, axes.yaxis):
            ticks(axis, 6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    if diagonal:
        above = ", ".join(f"{label}: {np.mean(np.asarray(y) > np.asarray(x)):.0%} above" for label, _, x, y in groups)
        described = f"Points above the line y = x rose; {above}."
    else:
        described = "Means: " + ", ".join(f"{label} {np.mean(x):.2f}, {np.mean(y):.2f}" for label, _, x, y in groups)
    svg = draw(f"{title}. {described}", paint, height=3.2)
    return Panel(title, svg, [(label, css(colour)) for label, colour, _, _ in groups], note)


@dataclass(frozen=True)
class Point:
    """A point of a plane with its intervals, each [low, high] or None."""

    label: str
    x: float
    y: float
    x_ci: Sequence[float] | None = None
    y_ci: Sequence[float] | None = None


def plane(
    title: str,
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
    even: float | None = None,
    note: str = "",
) -> Panel | None:
    """Points in their order, joined by a thin line, each with a cross of its two intervals; None for fewer than two.

    Args:
        percent: both are shares, shown in per cent.
        even: thin lines there, on both axes.
    """
    if len(points) < 2:
        return None

    def paint(axes: Axes) -> None:
        if even is not None:
            axes.axhline(even, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.axvline(even, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.plot([p.x for p in points], [p.y for p in points], color=MUTED, linewidth=0.7)
        for number, point in enumerate(points):
            colour = ramp(number, len(points))
            if point.x_ci is not None:
                axes.hlines(point.y, point.x_ci[0], point.x_ci[1], color=colour, linewidth=1.0)
            if point.y_ci is not None:
                axes.vlines(point.x, point.y_ci[0], point.y_ci[1], color=colour, linewidth=1.0)
            axes.plot([point.x], [point.y], "o", color=colour, markersize=4.5)
        for axis in (axes.xaxis, axes.yaxis):
            ticks(axis, 5, percent=percent, fine=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    described = ", ".join(f"{point.label} {point.x:.2f}, {point.y:.2f}" for point in points)
    legend = [(point.label, css(ramp(number, len(points)))) for number, point in enumerate(points)]
    return Panel(title, draw(f"{title}. {x_label}, {y_label}: {described}.", paint, height=3.0), legend, note)
