"""Tables: rows of cells that hold finished text; in the terminal, in Markdown, or in a page's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """text, a second line in small type (an interval), and how strongly to shade the cell, 0..1."""

    text: str
    small: str = ""
    shade: float | None = None


@dataclass(frozen=True)
class Table:
    """heads: (title, what it means) of each column, the first one the rows' names; rows: cells in the same order."""

    heads: list[tuple[str, str]]
    rows: list[list[Cell]]


def as_text(table: Table) -> str:
    """A table for the terminal, its columns aligned, intervals in brackets."""
    rows = [[head for head, _ in table.heads]]
    rows += [[f"{cell.text} ({cell.small})" if cell.small else cell.text for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.heads))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def all_as_markdown(tables: Sequence[tuple[str, Table]]) -> str:
    """Tables in Markdown, for the terminal: each below its name in bold."""
    return "\n\n".join(f"**{name}**\n\n{as_markdown(table)}" for name, table in tables)


def as_markdown(table: Table) -> str:
    """A table in Markdown, intervals in brackets."""
    rows = [[head for head, _ in table.heads], ["---"] * len(table.heads)]
    for row in table.rows:
        texts = (f"{cell.text} ({cell.small})" if cell.small else cell.text for cell in row)
        rows.append([text.replace("|", "\\|") for text in texts])  # in a name it would open a column
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
