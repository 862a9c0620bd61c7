"""Shares of a whole: a bar a row, cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf.report.drawing.figures import Panel, css, draw, plain, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def stacked(
    title: str, rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[tuple[str, str]], *, note: str = ""
) -> Panel | None:
    """One bar a row, from top to bottom; None for no rows.

    Args:
        rows: (label, amount of each part); amounts are drawn as shares of their row's sum.
        parts: (label, colour) of each part.
    """
    rows = [(label, amounts) for label, amounts in rows if sum(amounts) > 0]
    if not rows:
        return None
    shares = [[amount / sum(amounts) for amount in amounts] for _, amounts in rows]

    def paint(axes: Axes) -> None:
        axes.grid(False)
        for number, own in enumerate(shares):
            left = 0.0
            for (_, colour), share in zip(parts, own, strict=True):
                axes.barh(len(rows) - 1 - number, share, 0.62, left, color=colour, linewidth=0)
                left += share
        axes.set_yticks(range(len(rows)), [plain(label, 15) for label, _ in reversed(rows)])
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.spines["left"].set_visible(False)
        ticks(axes.xaxis, 4, percent=True, fine=True)

    described = "; ".join(
        f"{label}: " + ", ".join(f"{part} {share:.0%}" for (part, _), share in zip(parts, own, strict=True) if share)
        for (label, _), own in zip(rows, shares, strict=True)
    )
    svg = draw(f"{title}. {described}.", paint, height=0.7 + 0.36 * max(3, len(rows)))
    return Panel(title, svg, [(label, css(colour)) for label, colour in parts], note)
