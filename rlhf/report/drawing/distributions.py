"""Distributions of two groups' values, a row a version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf.report.drawing.figures import BLUE, GREY, Panel, css, draw, plain, ticks

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes


def ridges(
    title: str,
    rows: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    before: str,
    *,
    x_label: str = "",
    note: str = "",
) -> Panel | None:
    """One row a version: the distribution of values before (grey) and of its own (blue), with their means as ticks.

    Args:
        rows: (label, values before, the version's values); rows with fewer than two values are left out.
        before: whose values the former are.
    """
    rows = [row for row in rows if len(row[1]) > 1 and len(row[2]) > 1]
    if not rows:
        return None
    import numpy as np

    everything = np.concatenate([np.asarray([*old, *new]) for _, old, new in rows])
    low, high = np.quantile(everything, [0.002, 0.998])
    room = 0.08 * (high - low) or 1.0
    grid = np.linspace(low - room, high + room, 120)

    def paint(axes: Axes) -> None:
        axes.grid(False)
        for number, (_, old, new) in enumerate(rows):
            base = len(rows) - 1 - number
            densities = [_density(np.asarray(values), grid) for values in (old, new)]
            scale = 0.85 / max(float(d.max()) for d in densities)
            for values, density, colour in zip((old, new), densities, (GREY, BLUE), strict=True):
                axes.fill_between(grid, base, base + scale * density, color=colour, alpha=0.22, linewidth=0)
                axes.plot(grid, base + scale * density, color=colour, linewidth=1.1)
                axes.plot([np.mean(values)] * 2, [base, base + 0.14], color=colour, linewidth=2.0)
        axes.set_yticks(range(len(rows)), [plain(label, 15) for label, _, _ in reversed(rows)])
        axes.set_ylim(-0.08, len(rows))
        axes.spines["left"].set_visible(False)
        ticks(axes.xaxis, 6)
        axes.set_xlabel(x_label)

    means = ", ".join(f"{label}: {before} {np.mean(b):.2f}, itself {np.mean(a):.2f}" for label, b, a in rows)
    svg = draw(f"{title}. Means: {means}.", paint, height=0.8 + 0.45 * max(3, len(rows)))
    return Panel(title, svg, [(before, css(GREY)), ("the version", css(BLUE))], note)


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density with Silverman's bandwidth."""
    import numpy as np

    width = 1.06 * float(values.std()) * len(values) ** -0.2 or 0.1
    kernels = np.exp(-0.5 * ((grid[:, None] - values[None, :]) / width) ** 2)
    density: np.ndarray = kernels.sum(axis=1) / (len(values) * width * np.sqrt(2 * np.pi))
    return density
