"""The report's panels: SVGs by matplotlib, loaded when one is drawn, whose colours and letters are the page's own.

Each panel is drawn in sentinel colours that are then replaced by CSS variables, so that it follows the page from light
to dark; text stays text. Legends are HTML beside the SVG.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

INK, MUTED, LINE, BLUE, ORANGE, GREY = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
BACKGROUND = "#070707"
RAMP = ("#0a0a00", "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BLUE: "blue", ORANGE: "orange", GREY: "grey"}
_VARIABLES[BACKGROUND] = "bg"
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
MOST_LETTERS = 46
"""That labels side by side below an axis have room for."""
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
    """A line: y may have holes (None); ci holds [low, high] of each point, or None. Not `joined`: points alone."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float | None]
    ci: Sequence[Interval] | None = None
    dashed: bool = False
    markers: bool = True
    joined: bool = True


def css(colour: str) -> str:
    """The CSS variable that a sentinel colour stands for."""
    return f"var(--{_VARIABLES[colour]})"


def ramp(position: int, count: int) -> str:
    """Colour of version `position` of `count`, grey first, the newest strongest; many share all shades alike."""
    last, fewer = len(RAMP) - 1, min(len(RAMP), count) - 2
    return RAMP[0] if position == 0 else RAMP[last - round((count - 1 - position) * fewer / max(1, count - 2))]


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


def plain(text: str, most: int = 12) -> str:
    """A label that matplotlib shows as it is, without reading formulas into its dollar signs; cut to fit."""
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def crowded(names: Sequence[str]) -> bool:
    """Whether labels would run into each other below an axis, side by side: then they are turned."""
    return len(names) * (max(map(len, names), default=0) + 1) > MOST_LETTERS


def label_places(axes: Axes, names: Sequence[str]) -> None:
    """The names below x = 0, 1, ...; turned where they are `crowded`."""
    if crowded(names):
        turned: Any = {"rotation": 45, "rotation_mode": "anchor", "horizontalalignment": "right"}
        axes.set_xticks(range(len(names)), [plain(name, 20) for name in names], **turned)
    else:
        axes.set_xticks(range(len(names)), [plain(name) for name in names])
    axes.set_xlim(-0.4, len(names) - 0.6)


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
    from_zero: bool = False,
    steady: bool = False,
    note: str = "",
) -> Panel | None:
    """Lines with markers and error bars; None where no series has a point.

    Args:
        names: labels of x = 0, 1, ...; else x is numeric.
        percent: y is a share, shown in per cent.
        log2: x on a doubling scale.
        reference: a thin horizontal line there.
        from_zero: y is a quantity that is none at 0: the axis begins there, so that a small change looks small.
        steady: the axis is as wide as `noise` demands, so that what is chance from point to point looks like it.
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
            label_places(axes, names)
        elif log2:
            from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

            axes.set_xscale("log", base=2)
            places = sorted({x for s in series for x in s.x})
            axes.xaxis.set_major_locator(FixedLocator(places))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        else:
            whole = all(float(x).is_integer() for s in series for x in s.x)
            ticks(axes.xaxis, 6, percent=None, whole=whole)
        if from_zero or steady:
            others = () if reference is None else (reference,)
            axes.set_ylim(limits(series, others, from_zero=from_zero, steady=steady))
        ticks(axes.yaxis, 5, percent=percent, fine=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    described = f"{title}. " + " ".join(_described(s, names, percent) for s in series)
    legend = [(s.label, css(s.colour)) for s in series] if len(series) > 1 else []
    return Panel(title, draw(described, paint, height=3.0 if crowded(names) else 2.35), legend, note)


NOISE_ROOM = 8.0
"""Standard deviations of the noise that an axis spans at least."""


def noise(values: Sequence[float | None]) -> float:
    """Standard deviation of what changes by chance from point to point, whatever the trend (von Neumann, 1941).

    The root of half the mean square of the successive differences; 0 for fewer than two values.
    """
    known = [value for value in values if value is not None]
    squares = [(after - before) ** 2 for before, after in itertools.pairwise(known)]
    return math.sqrt(fmean(squares) / 2) if squares else 0.0


def limits(
    series: Sequence[Series], others: Sequence[float] = (), *, from_zero: bool, steady: bool
) -> tuple[float, float]:
    """The ends of the y axis for `lines`: all points and intervals, a twentieth beyond them, 0 and the noise's room.

    Args:
        others: values that the axis shows too.
    """
    ends = [*others, *(y for s in series for y in s.y if y is not None)]
    ends += [end for s in series for ci in s.ci or () if ci is not None for end in ci]
    low, high = min(ends), max(ends)
    room = NOISE_ROOM * max(noise(s.y) for s in series) if steady else 0.0
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
        high = max(high, low + room)
    elif (missing := room - (high - low)) > 0:
        low, high = low - missing / 2, high + missing / 2
    margin = 0.05 * (high - low) or 1.0
    return low if from_zero and low == 0 else low - margin, high + margin


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
        ticks(axes.xaxis, 6, percent=None)
        ticks(axes.yaxis, 4, percent=True, fine=True)
        axes.set_xlabel(x_label)

    middles = (np.asarray(edges[1:]) + np.asarray(edges[:-1])) / 2
    means = ", ".join(f"{group[0]}: {float(share @ middles):.2f}" for group, share in zip(groups, shares, strict=True))
    legend = [(label, css(colour)) for label, colour, _ in groups]
    return Panel(title, draw(f"{title}. Means: {means}.", paint), legend, note)


def _line(axes: Axes, s: Series, shift: float) -> None:
    kept = [i for i, y in enumerate(s.y) if y is not None]
    x, y = [s.x[i] + shift for i in kept], [y for y in s.y if y is not None]
    line: Any = (0, (4, 2)) if s.dashed else "-"
    style: dict[str, Any] = {"linestyle": line if s.joined else "none", "color": s.colour}
    axes.plot(x, y, marker="o" if s.markers else None, markeredgewidth=0, **style)
    for place, i in zip(x, kept, strict=True):
        ci = s.ci[i] if s.ci is not None else None
        if ci is not None:
            axes.plot([place, place], ci, color=s.colour, linewidth=1.0, solid_capstyle="butt")


def ticks(axis: Axis, most: int, *, percent: bool | None = False, fine: bool = False, whole: bool = False) -> None:
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
