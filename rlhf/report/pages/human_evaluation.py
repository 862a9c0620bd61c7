"""Figures, page and table of `rlhf annotate --compare` (rlhf.annotation.human_evaluation); a table of annotators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.report.drawing.figures import BLUE, GREY, ORANGE, Panel, Series, lines
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import NOTHING, interval, number, percent, version_label

if TYPE_CHECKING:
    from rlhf.annotation.owner import AnnotatorFigures

Row = Mapping[str, Any]
SHARES = ("win", "tie", "loss", "win_rate")
NO_RATES: Row = dict.fromkeys(SHARES)


def title_of(figures: Row) -> str:
    """The two models, by their names."""
    return " against ".join(version_label(str(name)) for name in figures["models"])


def human_table(figures: Row) -> Table:
    """A row for all pairs, each number of turns, length and domain; below each gold's, where that is known."""
    heads = [
        ("", ""),
        ("Pairs", "that were rated, or decided without a rater: the same text twice ties, an empty answer loses"),
        ("Win", "the first model's answer is better, by the median of its raters"),
        ("Tie", "about the same"),
        ("Loss", "the second model's answer is better"),
        ("Win rate", "ties count half"),
    ]
    gold = _parts(figures["gold"]) if figures["gold"] else {}
    parts: dict[str, Row] = {}
    for name, own in _parts(figures).items():
        parts[name] = own
        if name in gold:
            parts[f"{name}, by gold"] = gold[name]
    return Table(
        heads, [[Cell(name), Cell(str(own["pairs"])), *map(_cell, map(own.get, SHARES))] for name, own in parts.items()]
    )


def _parts(figures: Row) -> dict[str, Row]:
    """Name of a row -> its rates."""
    parts = {"all pairs": figures["all"]}
    parts |= {f"turns: {name}": own for name, own in figures["turns"].items()}
    parts |= {f"words: {name}": own for name, own in figures["words"].items()}
    return parts | figures["domains"] if len(figures["domains"]) > 1 else parts


def human_sentence(figures: Row) -> str:
    """Who rated, and how far they agree, as sentences."""
    said = [f"{len(figures['people'])} people gave {sum(figures['people'].values())} ratings"]
    if figures["judges"]:
        said.append(f"{len(figures['judges'])} judge models {sum(figures['judges'].values())}")
    text = [" and ".join(said) + "."]
    for name, key in (("AC2 of the seven points", "ac2"), ("AC1 of win, tie and loss", "ac1")):
        if found := figures[key]:
            text.append(f"Gwet's {name}: {number(found['value'], 2)} ({interval(found['ci'], 2)}).")
    for judge, own in figures["judge_agreement"].items():
        if own["same"]:
            text.append(f"{judge} and people agree on {_text(own['same'])} of {own['pairs']} pairs.")
    if figures["gold_same"]:
        text.append(f"Raters and gold agree on {_text(figures['gold_same'])} of the pairs.")
    if figures["unrated"]:
        text.append(f"{figures['unrated']} pairs are not rated yet.")
    return " ".join(text)


def human_panels(figures: Row) -> list[Panel]:
    """Win, tie and loss by the number of turns, and by the words of the prompt; the win rate by raters and by gold."""
    title, gold = title_of(figures), figures["gold"]
    found = []
    for what, key, note in (
        ("turns", "turns", "The person's turns in the dialogue; 1 is a single-turn prompt."),
        ("prompt length", "words", "Words of the dialogue up to the answer."),
    ):
        groups, names = figures[key], list(figures[key])
        shown = [
            _series(groups, name, name, colour) for name, colour in zip(SHARES, (BLUE, GREY, ORANGE), strict=False)
        ]
        found.append(lines(f"{title}: by {what}", shown, names=names, percent=True, note=note))
        if gold:
            true = {name: gold[key].get(name, NO_RATES) for name in groups}
            both = [_series(groups, "win_rate", "raters", BLUE), _series(true, "win_rate", "gold", ORANGE)]
            compared = f"{title}: win rate by {what}, raters and gold"
            found.append(lines(compared, both, names=names, percent=True, reference=0.5, note=note))
    return [panel for panel in found if panel is not None]


def annotator_table(figures: Mapping[str, AnnotatorFigures]) -> Table:
    """A row an annotator, as the owner's page has them (`rlhf.annotation.owner.annotator_figures`)."""
    heads = [
        ("Annotator", ""),
        ("Judgements", ""),
        ("Skipped", ""),
        ("Agreement", "choices that another annotator of the same pair shares"),
        ("Gold", "pairs with a known answer that were judged rightly"),
        ("Seconds", "median"),
        ("Pace", "fast or slow where the median is three times that of the other annotators, or a third of it"),
        ("Hasty", "judgements quicker than a fifth of everybody's median"),
        ("Left", "choices of the left answer"),
    ]
    rows = [
        [
            Cell(name),
            Cell(str(own["judgements"])),
            Cell(str(own["skipped"])),
            _cell(own["agreement"]),
            _cell(own["gold"]),
            Cell(number(own["median_seconds"], 1)),
            Cell(own["pace"] or NOTHING),
            _cell(own["hasty"]),
            _cell(own["left"]),
        ]
        for name, own in figures.items()
    ]
    return Table(heads, rows)


def build_human_page(figures: Row, page: Path) -> None:
    """Write the page: the table, who rated, and the figures."""
    content = page_template("parts.html.j2").render(
        title=title_of(figures),
        eyebrow="Human evaluation",
        intro=human_sentence(figures),
        models=[title_of(figures)],
        parts=[("Wins, ties and losses", human_table(figures), human_panels(figures))],
    )
    write_page(page, content)


def _series(groups: Mapping[str, Row], name: str, label: str, colour: str) -> Series:
    shares = [own[name] or {"rate": None, "ci": None} for own in groups.values()]
    return Series(label, colour, range(len(shares)), [s["rate"] for s in shares], [s["ci"] for s in shares])


def _cell(share: Row | None) -> Cell:
    return Cell(percent(share["rate"]), interval(share["ci"], 1, share=True)) if share else Cell(percent(None))


def _text(share: Row) -> str:
    return f"{percent(share['rate'])} ({interval(share['ci'], 1, share=True)})"
