"""Every family of docs/families.md, as its table says: a tiny random model, beside plain transformers.

Some cells stand for all in every run: those in which a family does something of its own. `make long` runs the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cells import CELLS, packs
from table import PAGE, REFUSALS, WORKS, as_table, shown_table, verdict
from transformers import PreTrainedTokenizerFast
from zoo import FAMILIES, make

STAND_FOR_ALL = {
    "llama": ("whole weights", "Ghost Attention"),
    "mixtral": ("NF4",),
    "qwen3_5": ("reward model",),
    "gemma3": ("LoRA", "reward model"),
    "granite": ("reward model",),
    "gpt2": ("NF4",),
    "gpt_bigcode": ("PPO",),
    "mamba": ("LoRA", "NF4", "sampling"),
    "falcon_h1": ("reward model",),
    "gpt_oss": ("LoRA",),
    "llama4_text": ("its LoRA", "PPO, shared base"),
}

MakeBase = Callable[[str], Path]


@pytest.fixture(scope="module")
def base(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> MakeBase:
    """The checkpoint of a family, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = make(name, tiny_tokenizer, tmp_path_factory.mktemp(name) / "base")
        return made[name]

    return of


def _cells() -> list[pytest.ParameterSet]:
    every = [(name, cell, cell in STAND_FOR_ALL.get(name, ())) for name in FAMILIES for cell in CELLS]
    return [
        pytest.param(name, cell, id=f"{name}-{cell}", marks=[] if always else pytest.mark.long)
        for name, cell, always in every
    ]


@pytest.mark.parametrize(("name", "cell"), _cells())
def test_a_cell_is_what_the_page_says(name: str, cell: str, base: MakeBase, tmp_path: Path) -> None:
    assert verdict(name, cell, base(name), tmp_path) == shown_table()[name, cell]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "llama" else pytest.mark.long) for n in FAMILIES])
def test_whether_rows_are_packed_is_what_the_page_says(name: str, base: MakeBase) -> None:
    assert shown_table()[name, "packed"] == (WORKS if packs(base(name)) else "no")


def test_the_page_has_every_cell_and_explains_every_refusal() -> None:
    text, shown = PAGE.read_text(encoding="utf-8"), shown_table()
    assert set(shown) == {(name, column) for name in FAMILIES for column in (*CELLS, "packed")}
    assert as_table(shown, [*CELLS, "packed"]) in text
    assert set(shown.values()) <= {WORKS, "no", *REFUSALS}
    for refusal in REFUSALS:
        assert f"**{refusal}**" in text
