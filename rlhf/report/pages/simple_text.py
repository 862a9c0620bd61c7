"""The page of simple, safe text (`data.json`): counts of every step, distributions, splits, leakage, examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.report.drawing.figures import BLUE, GREY, ORANGE, Panel, histogram
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table, as_text
from rlhf.report.drawing.text import clock, memory, number, percent

Row = Mapping[str, Any]
NAMES = {"eli5": "ELI5", "simple_wikipedia": "Simple Wikipedia"}
KINDS = {"sft": "SFT dialogues", "preferences": "preference pairs", "prompts": "prompts"}


def build_data_page(figures: Row, page: Path, title: str) -> None:
    """Write the page of a data.json; `title` names it."""
    leakage = figures["leakage"]
    content = page_template("simple_text.html.j2").render(
        title=title,
        headline=headline(figures),
        facts=facts(figures),
        rows=rows_table(figures),
        sources=[_source(name, source) for name, source in figures["sources"].items()],
        threshold=leakage and f"{leakage['threshold']:g}",
        leakage=leakage and leakage_table(leakage),
        leakage_panels=leakage and leakage_panels(leakage),
        leaks=[_leak(example) for example in leakage["examples"]] if leakage else [],
    )
    write_page(page, content)


def text_tables(figures: Row) -> str:
    """Every table of the page, for the terminal."""
    parts = [headline(figures), as_text(rows_table(figures))]
    parts += [f"{NAMES[name]}\n{as_text(steps_table(source))}" for name, source in figures["sources"].items()]
    if figures["leakage"]:
        parts.append(f"Leakage\n{as_text(leakage_table(figures['leakage']))}")
    return "\n\n".join([*parts, ", ".join(facts(figures))])


def headline(figures: Row) -> str:
    """What came out of what went in."""
    totals = [
        f"{sum(figures['rows'][kind].values()):,} {name}" for kind, name in KINDS.items() if kind in figures["rows"]
    ]
    read = [f"{source['read']:,} rows of {NAMES[name]}" for name, source in figures["sources"].items()]
    return f"{', '.join(totals)} from {' and '.join(read)}"


def facts(figures: Row) -> list[str]:
    """Which models filtered, and what the run cost."""
    models = figures["models"]
    return [
        f"toxicity by {models['toxicity']}" if models["toxicity"] else "toxicity not looked at",
        f"embeddings by {models['embedding']}" if models["embedding"] else "leakage not looked for",
        f"{figures['rows_per_second']:,.0f} rows a second",
        clock(figures["seconds"]),
        f"peak {memory(figures['peak_memory_mb'])}",
    ]


def rows_table(figures: Row) -> Table:
    """A row a kind, a column a split."""
    parts = ("train", "validation", "test")
    rows = [
        [Cell(name), *(Cell(f"{counts[part]:,}") for part in parts), Cell(f"{sum(counts.values()):,}")]
        for kind, name in KINDS.items()
        if (counts := figures["rows"].get(kind))
    ]
    return Table([("Rows", ""), *((part, "") for part in parts), ("all", "")], rows)


def steps_table(source: Row) -> Table:
    """A row a step: what went in, what came out, what it dropped or changed."""
    rows = []
    for step in source["steps"]:
        dropped = step["in"] - step["out"]
        rows.append(
            [
                Cell(f"{step['name']} of {step['unit']}", step["rule"] if step["rule"] != "clean-up" else ""),
                Cell(f"{step['in']:,}"),
                Cell(f"{step['out']:,}"),
                Cell(f"{dropped:,}", percent(dropped / step["in"]) if dropped else ""),
                Cell(f"{step['changed']:,}", percent(step["changed"] / step["in"]) if step["changed"] else ""),
            ]
        )
    return Table([("Step", ""), ("in", ""), ("out", ""), ("dropped", ""), ("changed", "")], rows)


def leakage_table(leakage: Row) -> Table:
    """A row for each split: rows in, rows out, and those dropped because another split has nearly the same."""
    rows = []
    for part, counts in leakage["parts"].items():
        dropped = counts["in"] - counts["out"]
        share = percent(dropped / counts["in"]) if dropped else ""
        rows.append([Cell(part), Cell(f"{counts['in']:,}"), Cell(f"{counts['out']:,}"), Cell(f"{dropped:,}", share)])
    return Table([("Questions", ""), ("in", ""), ("out", ""), ("dropped", "")], rows)


def leakage_panels(leakage: Row) -> list[Panel]:
    """How close each question of train and of validation comes to one of a later split."""
    panels = []
    for part, colour in (("train", BLUE), ("validation", ORANGE)):
        nearest = leakage["parts"][part]["nearest"]
        if nearest["n"]:
            groups = [(part, colour, nearest["counts"])]
            panels.append(histogram(f"Nearest to {part}", nearest["edges"], groups, x_label="highest cosine"))
    return panels


def _source(name: str, source: Row) -> dict[str, Any]:
    bad = "; ".join(f"{count} x {why}" for why, count in source["bad_rows"].items())
    return {
        "name": NAMES[name],
        "anchor": name,
        "bad_rows": f"Rows that could not be read: {bad}." if bad else "",
        "steps": steps_table(source),
        "panels": [
            panel for measure, groups in source["histograms"].items() if (panel := _distribution(measure, groups))
        ],
        "examples": [
            {"name": f"{step['name']} of {step['unit']}", "examples": [_example(e) for e in step["examples"]]}
            for step in source["steps"]
            if step["examples"]
        ],
    }


def _distribution(measure: str, groups: Row) -> Panel | None:
    known = [
        (f"{label} (mean {number(groups[key]['mean'], 2)})", colour, groups[key]["counts"])
        for key, label, colour in (("all", "all", GREY), ("kept", "kept", BLUE))
        if groups[key]["n"]
    ]
    if not known:
        return None
    title = measure[0].upper() + measure[1:]
    return histogram(title, groups["all"]["edges"], known, note="What lies outside counts in the bin at that end.")


def _example(example: Row) -> dict[str, Any]:
    value = example.get("value")
    return {
        "text": example["text"],
        "after": example.get("after"),
        "value": None if value is None else number(value, 2).removesuffix(".00"),
    }


def _leak(example: Row) -> dict[str, Any]:
    return {**example, "place": f"{example['part']}, cosine {number(example['cosine'], 3)}"}
