"""Points on a plane of two scores: a point a prompt, or one a version with its intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf.report.drawing.figures import BACKGROUND, INK, MUTED, Panel, css, draw, ramp, ticks

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
    """Points in their order, joined by a thin line, each numbered, with a cross of its two intervals; None for fewer
    than two.

    Args:
        percent: both are shares, shown in per cent.
        even: thin lines there, on both axes.
    """
    if len(points) < 2:
        return None
    colours = [ramp(place, len(points)) for place in range(len(points))]

    def paint(axes: Axes) -> None:
        if even is not None:
            axes.axhline(even, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.axvline(even, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.plot([p.x for p in points], [p.y for p in points], color=MUTED, linewidth=0.7)
        for point, colour in zip(points, colours, strict=True):
            if point.x_ci is not None:
                axes.hlines(point.y, point.x_ci[0], point.x_ci[1], color=colour, linewidth=1.0)
            if point.y_ci is not None:
                axes.vlines(point.x, point.y_ci[0], point.y_ci[1], color=colour, linewidth=1.0)
        for point, colour in zip(points, colours, strict=True):
            axes.plot([point.x], [point.y], "o", color=colour, markersize=4.5)
        _number(axes, points)
        for axis in (axes.xaxis, axes.yaxis):
            ticks(axis, 5, percent=percent, fine=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    described = ", ".join(f"{point.label} {point.x:.2f}, {point.y:.2f}" for point in points)
    legend = [(f"{number} {point.label}", css(colours[number - 1])) for number, point in enumerate(points, start=1)]
    return Panel(title, draw(f"{title}. {x_label}, {y_label}: {described}.", paint, height=3.0), legend, note)


WIDE, HIGH = 210.0, 160.0
"""Units that a plane's axes take, about."""
NEAR, STEP, FARTHEST = 8.0, 7.0, 43.0
"""Units from a point to the middle of its number: the nearest place, from one ring of places to the next, the last."""
ROOM = 9.0
"""Units that a number of two digits takes, either way."""


def _number(axes: Axes, points: Sequence[Point]) -> None:
    """Each point's place in their order beside it, behind a thin line where no place next to it is free."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    dots = [(WIDE * (p.x - left) / (right - left), HIGH * (p.y - low) / (high - low)) for p in points]
    line: Any = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    box: Any = {"boxstyle": "square,pad=0.05", "facecolor": BACKGROUND, "edgecolor": "none"}
    for number, (point, (x, y)) in enumerate(zip(points, offsets(dots), strict=True), start=1):
        axes.annotate(
            str(number),
            (point.x, point.y),
            (x, y),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="center",
            fontsize=7.5,
            color=INK,
            bbox=box,
            arrowprops=line if math.hypot(x, y) > NEAR + 1 else None,
        )


def offsets(dots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """How far from its dot each number stands, so that none lies on a dot or on another number, where there is room.

    The first free place of eight directions, the nearest ring first; all in one unit.
    """
    taken: list[tuple[float, float]] = []
    found = []
    for x, y in dots:
        places = [
            (radius * math.cos(turn * math.pi / 4), radius * math.sin(turn * math.pi / 4))
            for radius in _rings()
            for turn in (1, 3, 7, 5, 0, 4, 2, 6)
        ]
        free = (
            (dx, dy)
            for dx, dy in places
            if 0 <= x + dx <= WIDE
            and 0 <= y + dy <= HIGH
            and all(max(abs(x + dx - a), abs(y + dy - b)) >= ROOM for a, b in taken)
            and all(max(abs(x + dx - a), abs(y + dy - b)) >= ROOM / 2 + 1 for a, b in dots)
        )
        dx, dy = next(free, places[0])
        taken.append((x + dx, y + dy))
        found.append((dx, dy))
    return found


def _rings() -> list[float]:
    return [NEAR + STEP * ring for ring in range(int((FARTHEST - NEAR) / STEP) + 1)]
