"""docs/data_formats.md: each example is read as what the page says, and as nothing else; every layout has one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlhf.data.formats import FORMATS, format_of
from rlhf.data.loading import load_conversations, load_preferences, load_prompts
from rlhf.errors import InputError

PAGE = (Path(__file__).parents[3] / "docs" / "data_formats.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^### (.+?)\n\nRead as (.+?)\..*?```json\n(.+?)```", PAGE, re.MULTILINE | re.DOTALL)
LOADERS = {"SFT rows": load_conversations, "preferences": load_preferences, "prompts": load_prompts}
GOOD_AND_BAD = {"KTO", "KTO over other layouts", "BeaverTails"}  # of which SFT takes the good rows


@pytest.mark.parametrize(("title", "kinds", "block"), EXAMPLES, ids=[title for title, _, _ in EXAMPLES])
def test_an_example_is_read_as_the_page_says(tmp_path, title, kinds, block):
    file = tmp_path / "rows.jsonl"
    file.write_text(block, encoding="utf-8")
    for kind, load in LOADERS.items():
        if kind not in kinds:
            with pytest.raises(InputError, match=r"rows\.jsonl:1: (row: not a|messages: the last message must)"):
                load(file)
            continue
        rows = load(file, on_bad_row="skip" if title in GOOD_AND_BAD and kind == "SFT rows" else "refuse")
        text = json.dumps(rows if kind == "SFT rows" else [row.to_dict() for row in rows])
        assert "sky" in text and (kind == "prompts" or "Blue." in text) and "system_prompt" not in text
        if kind == "preferences":
            assert {(row.chosen.strip(), row.rejected.strip()) for row in rows} == {("Blue.", "Green.")}
        if kind == "prompts":
            assert not any(answer in text for answer in ("Blue.", "Green."))


def test_every_layout_has_an_example():
    rows = [json.loads(line) for _, _, block in EXAMPLES for line in block.splitlines()]
    found = {layout.name for row in rows if (layout := format_of(row)) is not None}
    assert {layout.name for layout in FORMATS} == found and len(EXAMPLES) == PAGE.count("```json")
