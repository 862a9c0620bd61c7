"""Tables of the documentation in a real browser: no name is broken in a word, none is too wide for the screen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
ASSETS = Path(__file__).resolve().parents[2] / "docs" / "assets"
TEST = "tests/unit/models/test_merging.py::test_an_untrained_adapter_merges_to_the_base_dequantised"
ROWS = f"""<tr><td>Simple merge of 0.5</td><td></td><td><code>rlhf.models.merging.merged_policy</code></td>
<td><code>{TEST}</code></td></tr>
<tr><td>An option</td><td>3.2</td><td><code>--sampling.max_new_tokens</code></td>
<td><code>0.5/a &lt;b&gt;</code></td></tr>"""
PAGE = f"""<!DOCTYPE html><style>td {{ padding: 0 2em; font-size: 13px }} {(ASSETS / "wide.css").read_text()}</style>
<article class="md-typeset"><div class="md-typeset__table"><table>
<thead><tr><th>what</th><th>paper</th><th>function</th><th>test</th></tr></thead>
<tbody>{ROWS}</tbody></table></div></article>
<script>{(ASSETS / "tables.js").read_text()}</script>"""
LINES = """() => [...document.querySelectorAll("td code")].map((code) => {
  const lines = [], texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT), range = document.createRange();
  for (let top = -99; texts.nextNode(); ) {
    range.selectNodeContents(texts.currentNode);
    if (range.getClientRects().length > 1) throw Error(`broken: ${texts.currentNode.data}`);
    const line = range.getBoundingClientRect().top;
    if (Math.abs(line - top) > 3) lines.push("");
    lines[lines.length - 1] += texts.currentNode.data;
    top = line;
  }
  return lines;
})"""
ROW = "<td><code>settings/heldout_share.yaml</code></td><td>a share is held out</td>"


@pytest.mark.parametrize("width", [1280, 400])
def test_names_go_on_behind_their_parts_and_rows_are_cards_where_there_is_no_room(chromium: Any, width: int) -> None:
    page = chromium.new_context(viewport={"width": width, "height": 800}).new_page()
    page.set_content(PAGE, wait_until="load")
    function, test, option, texts = page.evaluate(LINES)
    assert "".join(test) == TEST and texts == ["0.5/a <b>"] and option == ["--sampling.max_new_tokens"]
    assert all(line.endswith((".", "/", "::", "_")) for name in (function, test) for line in name[:-1])
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shown = page.evaluate("getComputedStyle(document.querySelectorAll('td')[2], '::before').content")
    assert shown == ('"function"' if width == 400 else "none")
    page.set_viewport_size({"width": 1680 - width, "height": 800})
    cards = "(count) => document.querySelectorAll('[data-cards]').length === count"
    page.wait_for_function(cards, arg=int(width > 400))


def test_a_table_that_has_room_breaks_no_word(chromium: Any) -> None:
    page = chromium.new_context(viewport={"width": 600, "height": 800}).new_page()
    page.set_content(re.sub(r"<tr><td>.*</tr>", f"<tr>{ROW}</tr>", PAGE, flags=re.DOTALL), wait_until="load")
    ((*before, _),) = lines = page.evaluate(LINES)  # how wide it is hangs on the fonts of the machine
    assert "".join(lines[0]) == "settings/heldout_share.yaml" and before in ([], ["settings/"])
    assert page.locator("[data-cards]").count() == 0


def test_an_option_in_a_card_is_not_broken_behind_its_hyphens(chromium: Any) -> None:
    """Before, a phone showed "sft --" at the end of a line of a card and the option's name in the next."""
    page = chromium.new_context(viewport={"width": 400, "height": 800}).new_page()
    options = "".join(f"<code>sft --finetuning.optimizer.{'x' * size}</code> " for size in range(1, 30))
    page.set_content(PAGE.replace(ROWS, f"{ROWS}<tr><td>a</td><td>{options}</td></tr>"), wait_until="load")
    assert page.locator("[data-cards]").count() == 1 and page.locator("td code .option").count() == 30
    tall = "(found) => found.filter((option) => option.getClientRects().length > 1).length"
    assert page.locator("td code .option").evaluate_all(tall) == 0


def test_an_option_in_a_line_of_text_is_not_broken_behind_its_hyphens(chromium: Any) -> None:
    """Before, a phone showed "--" at the end of a line and "prompts a.jsonl" in the next."""
    page = chromium.new_context(viewport={"width": 400, "height": 800}).new_page()
    text = "<p style='width: 12em'>a few words <code>--validation-prompts a-file.jsonl</code> and a link</p>"
    page.set_content(PAGE.replace("<div class", f"{text}<div class", 1), wait_until="load")
    assert page.evaluate("document.querySelector('p code span').getClientRects().length") == 1
    assert page.inner_text("p code span") == "--validation-prompts"
    assert page.text_content("p code") == "--validation-prompts a-file.jsonl"
