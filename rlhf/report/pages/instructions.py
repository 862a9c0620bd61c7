"""Tables of `recipes/evaluation/evaluate_instructions.py`, from instruction_evaluation.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf.report.drawing.tables import Cell, Table, all_as_markdown
from rlhf.report.drawing.text import interval, percent, version_label

if TYPE_CHECKING:
    from rlhf.evaluation.instructions.ifeval import Followed, InstructionFigures


def markdown_tables(figures: InstructionFigures) -> str:
    """The four figures, and each instruction's."""
    rows = [[Cell(name), Cell(str(one["n"])), _cell(one)] for name, one in figures["by_instruction"].items()]
    each = Table([("Instruction", ""), ("Times", ""), ("Followed", "strictly")], rows)
    return all_as_markdown([("Instructions followed", instruction_table([figures])), ("One by one, strictly", each)])


def instruction_table(evaluations: Sequence[InstructionFigures]) -> Table:
    """A row a policy."""
    heads = [
        ("Version", ""),
        ("Prompts", "all of whose instructions are followed"),
        ("loosely", "the same past an introduction, a closing line, and asterisks"),
        ("Instructions", "followed, of all prompts'"),
        ("loosely", ""),
    ]
    return Table(
        heads,
        [
            [
                Cell(version_label(one["name"])),
                *map(_cell, (one["prompt_strict"], one["prompt_loose"])),
                *map(_cell, (one["instruction_strict"], one["instruction_loose"])),
            ]
            for one in evaluations
        ],
    )


def _cell(found: Followed) -> Cell:
    return Cell(percent(found["share"]), interval(found["ci"], 1, share=True))
