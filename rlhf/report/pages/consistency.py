"""Multi-turn consistency as tables in Markdown and two pictures: obedience over turns, and the attention map.

Light: matplotlib when it draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlhf.evaluation.instructions.consistency import Everyday, Obedience

COLOURS = ("#6b7280", "#1d4ed8", "#c2410c", "#047857")
STYLES = {"trained": "-", "unseen": "--"}


def consistency_table(rows: Sequence[Obedience]) -> str:
    """A line a policy and group, a column a turn: the share that obeys, its interval, and its range over runs."""
    turns = list(dict.fromkeys(row["turn"] for row in rows))
    lines = [
        "| policy, instructions | " + " | ".join(f"turn {turn}" for turn in turns) + " |",
        "|---|" + "---|" * len(turns),
    ]
    for policy, group in dict.fromkeys((row["policy"], row["group"]) for row in rows):
        own = [row for row in rows if (row["policy"], row["group"]) == (policy, group)]
        lines.append(f"| {policy}, {group} | " + " | ".join(map(_share, own)) + " |")
    return "\n".join(lines)


def _share(row: Obedience) -> str:
    if row["share"] is None or row["ci"] is None:
        return "–"
    low, high = row["ci"]
    by_run = list(row["by_run"].values())
    runs = f"; runs {100 * min(by_run):.0f} to {100 * max(by_run):.0f}" if len(by_run) > 1 else ""
    return f"{100 * row['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f}{runs})"


def everyday_table(rows: Sequence[Everyday]) -> str:
    """A line a policy and figure: the mean, and the gain over the first policy, with their intervals."""
    lines = ["| policy | figure | mean | gain over the first |", "|---|---|---|---|"]
    for row in rows:
        gain = "" if row["gain"] is None else f"{row['gain']:+.3f}{_interval(row['gain_ci'], '+.3f')}"
        mean = "–" if row["mean"] is None else f"{row['mean']:.3f}{_interval(row['ci'], '.3f')}"
        lines.append(f"| {row['policy']} | {row['figure']} | {mean} | {gain} |")
    return "\n".join(lines)


def _interval(ci: Sequence[float] | None, form: str) -> str:
    return "" if ci is None else f" ({ci[0]:{form}} to {ci[1]:{form}})"


def attention_table(rows: Mapping[str, Sequence[float]]) -> str:
    """A line a policy, a column a turn: the largest attention that the answer's tokens pay to the instruction."""
    count = max(map(len, rows.values()))
    lines = [
        "| attention to the instruction | " + " | ".join(f"turn {turn}" for turn in range(1, count + 1)) + " |",
        "|---|" + "---|" * count,
    ]
    lines += [f"| {policy} | " + " | ".join(f"{v:.2f}" for v in values) + " |" for policy, values in rows.items()]
    return "\n".join(lines)


def plot_consistency(rows: Sequence[Obedience], file: Path) -> None:
    """Obedience over turns with 95 % intervals: a colour a policy, dashed for unseen instructions (SVG)."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for number, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        for group in dict.fromkeys(row["group"] for row in rows):
            own = [r for r in rows if (r["policy"], r["group"]) == (policy, group)]
            known = [(r["turn"], s, ci) for r in own if (s := r["share"]) is not None and (ci := r["ci"]) is not None]
            x, y = [turn for turn, _, _ in known], [100 * share for _, share, _ in known]
            low, high = ([100 * ci[end] for _, _, ci in known] for end in (0, 1))
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(x, y, STYLES.get(group, ":"), color=colour, marker="o", markersize=3, label=f"{policy}, {group}")
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="turn", ylabel="dialogues that obey, %", ylim=(0, 102))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, metadata={"Date": None})


def plot_attention(maps: Mapping[str, NDArray[np.float32]], size: int, file: Path) -> None:
    """The binned maps side by side, on one scale (SVG); `size` tokens a bin."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(maps), 4), layout="constrained")
    FigureCanvasSVG(figure)
    highest = max(float(values.max()) for values in maps.values())
    for number, (policy, values) in enumerate(maps.items(), start=1):
        axes = figure.add_subplot(1, len(maps), number)
        axes.imshow(values, cmap="magma", vmin=0, vmax=highest, interpolation="nearest")
        axes.set(title=policy, xlabel=f"read, {size} tokens a bin", ylabel="reading" if number == 1 else "")
    figure.savefig(file, metadata={"Date": None})
