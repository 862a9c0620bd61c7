"""The report's panels: SVGs by matplotlib, loaded when one is drawn, whose colours and letters are the page's own.

Each panel is drawn in sentinel colours that are then replaced by CSS variables, so that it follows the page from light
to dark; text stays text. Legends are HTML beside the SVG.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

INK, MUTED, LINE, BLUE, ORANGE, GREY = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
RAMP = ("#0a0a00", "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BLUE: "blue", ORANGE: "orange", GREY: "grey"}
_VARIABLES |= {colour: f"ramp{i}" for i, colour in enumerate(RAMP)}
STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.06,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}
Interval = Sequence[float] | None


@dataclass(frozen=True)
class Panel:
    """One figure of the page.

    Args:
        title: above it.
        svg: the picture, safe to embed.
        legend: (label, CSS colour) of each series; empty for one series.
        note: a sentence below it.
    """

    title: str
    svg: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Series:
    """A line: y may have holes (None); ci holds [low, high] of each point, or None."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float | None]
    ci: Sequence[Interval] | None = None
    dashed: bool = False
    markers: bool = True


def css(colour: str) -> str:
    """The CSS variable that a sentinel colour stands for."""
    return f"var(--{_VARIABLES[colour]})"


def ramp(position: int, count: int) -> str:
    """Colour of version `position` of `count`, grey first, the newest strongest."""
    return RAMP[0] if position == 0 else RAMP[max(1, len(RAMP) - count + position)]


def draw(description: str, paint: Callable[[Axes], None], *, height: float = 2.35) -> Markup:
    """An SVG of one pair of axes, 260 units wide, described by `description` for those who do not see it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.61, height), layout="constrained")
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        return _embed(_svg_of(figure), description)


def _svg_of(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def _embed(svg: str, description: str) -> Markup:
    """The drawing for a page: without metadata, styles and ids of its own, the colours as CSS variables."""
    prefix = f"f{hashlib.sha256((description + svg).encode()).hexdigest()[:8]}-"
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    rest = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>", r"(?<=<g) id=\"[^\"]*\""):
        rest = re.sub(unwanted, "", rest, flags=re.S)
    rest = re.sub(r" font-family: [^;\"]+;", "", rest)
    rest = re.sub(r' transform="rotate\(-0 [^"]*"', "", rest)
    rest = re.sub(r"\s*\n\s*", " ", rest)
    rest = re.sub(r'\bid="', f'id="{prefix}', rest)
    rest = rest.replace('xlink:href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")
    rest = re.sub("|".join(_VARIABLES), lambda found: css(found.group()), rest)
    label = escape(description)
    return Markup(f'<svg viewBox="{box.group(1)}" role="img" aria-label="{label}"><title>{label}</title>{rest}')


def plain(text: str) -> str:
    """A label that matplotlib shows as it is, without reading formulas into its dollar signs; cut to fit."""
    return (text if len(text) <= 12 else text[:11] + "…").replace("$", r"\$")


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_label: str = "",
    names: Sequence[str] = (),
    percent: bool = False,
    log2: bool = False,
    reference: float | None = None,
    note: str = "",
) -> Panel | None:
    """Lines with markers and error bars; None where no series has a point.

    Args:
        names: labels of x = 0, 1, ...; else x is numeric.
        percent: y is a share, shown in per cent.
        log2: x on a doubling scale.
        reference: a thin horizontal line there.
    """
    series = [s for s in series if any(y is not None for y in s.y)]
    if not series:
        return None

    def paint(axes: Axes) -> None:
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for number, s in enumerate(series):
            shift = (number - (len(series) - 1) / 2) * 0.09 if names and len(series) > 1 else 0.0
            _line(axes, s, shift)
        if names:
            axes.set_xticks(range(len(names)), [plain(name) for name in names])
            axes.set_xlim(-0.4, len(names) - 0.6)
        elif log2:
            from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

            axes.set_xscale("log", base=2)
            ticks = sorted({x for s in series for x in s.x})
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        else:
            whole = all(float(x).is_integer() for s in series for x in s.x)
            _ticks(axes.xaxis, 6, percent=None, whole=whole)
        _ticks(axes.yaxis, 5, percent=percent, fine=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    described = f"{title}. " + " ".join(_described(s, names, percent) for s in series)
    legend = [(s.label, css(s.colour)) for s in series] if len(series) > 1 else []
    return Panel(title, draw(described, paint), legend, note)


def histogram(
    title: str,
    edges: Sequence[float],
    groups: Sequence[tuple[str, str, Sequence[float]]],
    *,
    x_label: str = "",
    note: str = "",
) -> Panel:
    """Counts in the bins between the edges, each group (label, colour, counts) as shares of its own."""
    import numpy as np

    shares = [np.asarray(counts, dtype=float) / max(1.0, float(np.sum(counts))) for _, _, counts in groups]

    def paint(axes: Axes) -> None:
        for (_, colour, _), share in zip(groups, shares, strict=True):
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.1)
        _ticks(axes.xaxis, 6, percent=None)
        _ticks(axes.yaxis, 4, percent=True, fine=True)
        axes.set_xlabel(x_label)

    middles = (np.asarray(edges[1:]) + np.asarray(edges[:-1])) / 2
    means = ", ".join(f"{group[0]}: {float(share @ middles):.2f}" for group, share in zip(groups, shares, strict=True))
    legend = [(label, css(colour)) for label, colour, _ in groups]
    return Panel(title, draw(f"{title}. Means: {means}.", paint), legend, note)


def _line(axes: Axes, s: Series, shift: float) -> None:
    kept = [i for i, y in enumerate(s.y) if y is not None]
    x, y = [s.x[i] + shift for i in kept], [y for y in s.y if y is not None]
    style: dict[str, Any] = {"linestyle": (0, (4, 2)) if s.dashed else "-", "color": s.colour}
    axes.plot(x, y, marker="o" if s.markers else None, markeredgewidth=0, **style)
    for place, i in zip(x, kept, strict=True):
        ci = s.ci[i] if s.ci is not None else None
        if ci is not None:
            axes.plot([place, place], ci, color=s.colour, linewidth=1.0, solid_capstyle="butt")


def _ticks(axis: Axis, most: int, *, percent: bool | None = False, fine: bool = False, whole: bool = False) -> None:
    """At most so many intervals of 1, 2 or 5 (`fine`: 2.5 too) times a power of ten.

    Args:
        percent: how the numbers are written, see `_tick`; None: as matplotlib does.
        whole: at integers alone.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10] if fine else [1, 2, 5, 10]))
    if percent is not None:
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, percent)))


def _tick(value: float, percent: bool) -> str:
    text = f"{100 * value:g} %" if percent else f"{value:g}"
    return text.replace("-", "−")


def _described(s: Series, names: Sequence[str], percent: bool) -> str:
    known = [(i, y) for i, y in enumerate(s.y) if y is not None]
    shown = known if len(known) <= 8 else [known[0], known[-1]]
    points = ", ".join(
        f"{names[i] if names else f'{s.x[i]:g}'}: {f'{100 * y:.1f} %' if percent else f'{y:.3g}'}" for i, y in shown
    )
    return f"{s.label}: {points}."


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
        axes.set_yticks(range(len(rows)), [plain(label) for label, _, _ in reversed(rows)])
        axes.set_ylim(-0.08, len(rows))
        axes.spines["left"].set_visible(False)
        _ticks(axes.xaxis, 6)
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
            _ticks(axis, 6)
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


def plane(title: str, points: Sequence[Point], *, x_label: str, y_label: str, note: str = "") -> Panel | None:
    """Points in their order, joined by a thin line, each with a cross of its two intervals; None for fewer than two."""
    if len(points) < 2:
        return None

    def paint(axes: Axes) -> None:
        axes.plot([p.x for p in points], [p.y for p in points], color=MUTED, linewidth=0.7)
        for number, point in enumerate(points):
            colour = ramp(number, len(points))
            if point.x_ci is not None:
                axes.hlines(point.y, point.x_ci[0], point.x_ci[1], color=colour, linewidth=1.0)
            if point.y_ci is not None:
                axes.vlines(point.x, point.y_ci[0], point.y_ci[1], color=colour, linewidth=1.0)
            axes.plot([point.x], [point.y], "o", color=colour, markersize=4.5)
        for axis in (axes.xaxis, axes.yaxis):
            _ticks(axis, 5, fine=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    described = ", ".join(f"{point.label} {point.x:.2f}, {point.y:.2f}" for point in points)
    legend = [(point.label, css(ramp(number, len(points)))) for number, point in enumerate(points)]
    return Panel(title, draw(f"{title}. {x_label}, {y_label}: {described}.", paint, height=3.0), legend, note)
