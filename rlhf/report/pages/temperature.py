"""A temperature sweep's figures (`sweep.json`): panels and a table, for its own page and for the run's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.report.drawing.curves import doublings, kl_panel
from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, Panel, Series, lines, ramp
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table, as_text
from rlhf.report.drawing.text import interval, number, percent, signed

Row = Mapping[str, Any]
GROUP_COLOURS = (BLUE, ORANGE, GREY, INK)


def build_sweep_page(sweep: Row, page: Path, title: str) -> None:
    """Write the page of a sweep.json; `title` names it."""
    content = page_template("temperature.html.j2").render(
        title=title,
        headline=headline(sweep),
        facts=[f"{sweep['prompts']} prompts", f"{sweep['num_samples']} answers per prompt and temperature"],
        panels=sweep_panels(sweep),
        table=sweep_table(sweep),
    )
    write_page(page, content)


def text_table(sweep: Row) -> str:
    """The table and the choice, for the terminal."""
    return f"{as_text(sweep_table(sweep))}\n\n{headline(sweep)}"


def headline(sweep: Row) -> str:
    """Which temperature is best, and how sure that is."""
    best = sweep["best"]
    low, high = best["ci"]
    sure = "and so in 95 % of resamples" if low == high else f"and between {low:g} and {high:g} in 95 % of resamples"
    return f"The best of {sweep['best_of']} answers is best at temperature {best['temperature']:g}, {sure}."


def sweep_panels(sweep: Row) -> list[Panel]:
    """Best, median and KL over k, a line a temperature; over the temperature: best of k, Self-BLEU, length."""
    rows: Sequence[Row] = sweep["temperatures"]
    x = [row["temperature"] for row in rows]
    chosen = sweep["best_of"]

    def over_k(title: str, key: str) -> Panel | None:
        series = []
        for i, row in enumerate(rows):
            curve = doublings(row["curve"])
            ks, y, ci = ([p[name] for p in curve] for name in ("k", key, f"{key}_ci"))
            series.append(Series(f"T = {row['temperature']:g}", ramp(i, len(rows)), ks, y, ci))
        return lines(title, series, log2=True, x_label="samples per prompt, k")

    def over_temperature(title: str, series: Sequence[tuple[str, str, Callable[[Row], Row | None]]], note: str) -> Any:
        found = []
        for label, colour, figure in series:
            values = [figure(row) for row in rows]
            means, cis = ([None if v is None else v[key] for v in values] for key in ("mean", "ci"))
            found.append(Series(label, colour, x, means, cis))
        return lines(title, found, x_label="temperature", note=note)

    def best(row: Row) -> Row:
        point = row["curve"][chosen - 1]
        return {"mean": point["max"], "ci": point["max_ci"]}

    def alike(name: str) -> Callable[[Row], Row | None]:
        return lambda row: row["self_bleu"][name]

    groups = [(name, GROUP_COLOURS[i % len(GROUP_COLOURS)], alike(name)) for i, name in enumerate(sweep["groups"])]
    panels = [
        over_k("Best of k", "max"),
        over_k("Median of k", "median"),
        kl_panel({f"T = {row['temperature']:g}": row["curve"] for row in rows}),
        over_temperature(
            f"Best of {chosen}",
            [("best", BLUE, best)],
            "Temperatures share their prompts, so they differ more surely than it looks.",
        ),
        over_temperature("Self-BLEU", groups, "How alike the answers to one prompt are, 0 to 1."),
        over_temperature("Length", [("tokens", INK, lambda row: row["length"])], "Tokens per answer."),
    ]
    return [panel for panel in panels if panel is not None]


def sweep_table(sweep: Row) -> Table:
    """A row for each temperature: expected reward of one, of the median and of the best answer, Self-BLEU, length."""
    k = sweep["best_of"]
    heads = [
        ("Temperature", ""),
        ("One answer", "expected raw gated reward of one answer"),
        (f"Median of {k}", ""),
        (f"Best of {k}", "expected raw gated reward of the best"),
        ("Best in", "share of bootstrap draws of the prompts where this temperature is the best"),
        ("KL", f"estimate in nats for the best of {k}; at most log {k} - {k - 1}/{k}"),
        *((f"Self-BLEU, {name}", f"{count} prompts") for name, count in sweep["groups"].items()),
        ("Length", "tokens per answer"),
        ("Finished", "share of the answers that came to their end; another counts with the lowest reward of all"),
    ]
    rows = []
    for row in sweep["temperatures"]:
        one, chosen = row["curve"][0], row["curve"][k - 1]
        rows.append(
            [
                Cell(f"{row['temperature']:g}"),
                Cell(signed(one["max"]), interval(one["max_ci"], 2)),
                Cell(signed(chosen["median"]), interval(chosen["median_ci"], 2)),
                Cell(signed(chosen["max"]), interval(chosen["max_ci"], 2)),
                Cell(percent(sweep["best"]["best_share"][str(row["temperature"])], 0)),
                Cell(number(chosen["kl_estimate"], 2)),
                *(_mean(row["self_bleu"][name], 3) for name in sweep["groups"]),
                _mean(row["length"], 1),
                Cell(percent(row["finished_share"])),
            ]
        )
    return Table(heads, rows)


def _mean(figures: Row | None, digits: int) -> Cell:
    if figures is None:
        return Cell(number(None))
    return Cell(number(figures["mean"], digits), interval(figures["ci"], digits))
