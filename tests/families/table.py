"""The table of docs/families.md: every cell run, and what came of it.

python tests/families/table.py     # prints it, in some minutes
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cells import CELLS, Ground, packs
from zoo import FAMILIES, make

from rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "families.md"
WORKS = "yes"
REFUSALS = {
    "fused": r"quantization: nf4 reaches [\d,]+ of [\d,]+ weights, .* is no linear layer that it knows; leave quantiz",
}
"""What a refused cell shows -> the sentence."""


def verdict(name: str, cell: str, base: Path, folder: Path) -> str:
    """What the table shows of a cell: that it works, or how it is refused.

    Raises:
        AssertionError, or anything else: it is wrong, which no table shows.
    """
    try:
        CELLS[cell](Ground(base, folder))
    except InputError as error:
        for shown, sentence in REFUSALS.items():
            if re.search(sentence, str(error)):
                return shown
        raise AssertionError(f"{name}, {cell}: refused by a sentence that the page does not have: {error}") from error
    return WORKS


def shown_table() -> dict[tuple[str, str], str]:
    """(family, column) -> what the page's table shows."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| family |") :].partition("\n\n")[0]
    heads, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    found = {}
    for row in rows:
        found.update({(row[0].strip("`"), head): value for head, value in zip(heads[1:], row[1:], strict=True)})
    return found


def as_table(found: dict[tuple[str, str], str], columns: Iterable[str]) -> str:
    """Markdown of `shown_table`'s form."""
    heads = ["family", *columns]
    lines = [heads, ["---"] * len(heads)]
    lines += [[f"`{name}`", *(found[name, column] for column in heads[1:])] for name in FAMILIES]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run_all(tokenizer: PreTrainedTokenizerBase) -> dict[tuple[str, str], str]:
    """Every cell of every family."""
    found = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as made, contextlib.redirect_stderr(io.StringIO()) as said:
            base = make(name, tokenizer, Path(made) / "base")
            found[name, "packed"] = WORKS if packs(base) else "no"
            for number, cell in enumerate(CELLS):
                try:
                    found[name, cell] = verdict(name, cell, base, Path(made) / str(number))
                except Exception as error:
                    found[name, cell] = f"**{type(error).__name__}: {' '.join(str(error).split())[:200]}**"
            said.truncate(0)
        print(name, file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import make_tiny_tokenizer

    warnings.filterwarnings("ignore")
    print(as_table(run_all(make_tiny_tokenizer()), [*CELLS, "packed"]))
