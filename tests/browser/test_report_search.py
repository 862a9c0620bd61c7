"""The report's search in a real browser, from the file system: by keyboard, on a narrow screen, with hostile texts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))
from fake_run import unpacked, write_run

from rlhf.report import build_report
from rlhf.report.run.tables import COLUMNS

pytestmark = pytest.mark.browser
ATTACK = '</script><script>document.title="taken"</script><img src=x onerror=\'document.title="taken"\'>'


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """210 prompts, whose first five answers by two versions are known."""
    run = write_run(tmp_path_factory.mktemp("runs") / "demo", versions=("sft", "v1"))
    texts = [
        ("The old river is deep.", "The river is very deep and cold."),
        (ATTACK, f"It is {ATTACK}"),
        ("same", "same"),
        ("", "Not empty."),
        ("今天天气好", "今天心情好"),
    ]
    for number, name in enumerate(("sft_evaluation", "v1/evaluation")):
        path = run / name / "answers.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row, both in zip(rows, texts, strict=False):
            row["answer"] = both[number]
        rows[1]["messages"] = [
            {"role": ATTACK, "content": "Is it hostile?"},
            {"role": "user", "content": f"hostile {ATTACK}"},
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_report(run)


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(report.as_uri() + "#answers")
    page.wait_for_selector("#found article")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") == 360, "nothing is wider than the screen"
    assert page.title() == "demo · rlhf" and said == [], "no script but the page's own, no request, no error"
    context.close()


def places(page: Any) -> list[str]:
    return [text.partition(" · ")[2] for text in page.locator("#found .place").all_inner_texts()]


def search(page: Any, text: str) -> None:
    page.keyboard.press("/")
    page.keyboard.press("Control+a")
    page.keyboard.press("Backspace")
    page.keyboard.type(text)
    page.keyboard.press("Escape")


def test_search_by_keyboard_and_the_words_that_differ(page: Any) -> None:
    assert page.locator("#count").inner_text() == "210 prompts found, 10 shown"
    search(page, "DEEP river cold")
    page.locator("#count", has_text="1 prompt found, 1 shown").wait_for()
    assert places(page) == ["test-00000"]
    assert page.locator("#found del").all_inner_texts() == ["old"]
    assert page.locator("#found ins").all_inner_texts() == ["very", "and cold"]
    before, after = page.locator("#found .answer").all_inner_texts()
    assert (before, after) == ("The old river is deep.", "The river is very deep and cold.")
    scores = page.locator("#found .scores").all_inner_texts()
    assert all("helpful" in text and "tokens" in text for text in scores) and len(scores) == 2
    search(page, "no such words anywhere")
    page.locator("#count", has_text="No prompt has all of this.").wait_for()
    search(page, "")
    page.locator("#count", has_text="210 prompts found, 10 shown").wait_for()
    for number in range(3):
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.querySelector('.place').textContent").endswith(f"0000{number}")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.querySelector('.place').textContent").endswith("00001")


def test_hostile_texts_stay_texts(page: Any) -> None:
    search(page, "hostile")
    page.locator("#count", has_text="1 prompt found, 1 shown").wait_for()
    assert page.locator("#found .ask").inner_text() == f"hostile {ATTACK}"
    assert "".join(page.locator("#found .answer").all_inner_texts()) == ATTACK + f"It is {ATTACK}"
    assert page.locator("#found script, #found img").count() == 0


def test_texts_without_spaces_are_compared_by_characters(page: Any) -> None:
    search(page, "心情")
    page.locator("#count", has_text="1 prompt found, 1 shown").wait_for()
    assert page.locator("#found del").all_inner_texts() == ["天气"]
    assert page.locator("#found ins").all_inner_texts() == ["心情"]
    assert "".join(page.locator("#found .answer").all_inner_texts()) == "今天天气好今天心情好"


def test_filters_and_order_outlive_a_reload(page: Any, report: Path) -> None:
    data = unpacked(report.read_text().split('id="answers-data">')[1].split("</script>")[0])
    both = list(zip(data["prompts"], *data["answers"], strict=True))
    violation = 1 << data["marks"].index("violation")
    page.select_option("#mark", label="violation")
    wanted = [p[0] for p, a, b in both if (a[2] | b[2]) & violation]
    page.locator("#count", has_text=f"{len(wanted)} prompts found").wait_for()
    assert places(page) == wanted[:10]
    page.select_option("#mark", label="or not")
    page.select_option("#kind", "unsafe")
    page.select_option("#order", "fall")
    falls = sorted((b[3], number) for number, (p, _, b) in enumerate(both) if p[1] == "unsafe")
    page.wait_for_url(re.compile("kind=unsafe&order=fall"))
    assert page.locator("#count").inner_text() == f"{len(falls)} prompts found, 10 shown"
    assert places(page) == [both[number][0][0] for _, number in falls[:10]]
    page.reload()
    page.wait_for_selector("#found article")
    assert page.evaluate("['kind', 'order', 'left', 'right'].map((id) => document.getElementById(id).value)") == [
        "unsafe",
        "fall",
        "0",
        "1",
    ]
    assert places(page) == [both[number][0][0] for _, number in falls[:10]]
    page.click("#more")
    assert len(places(page)) == min(20, len(falls))
    page.select_option("#left", "1")  # one version alone: nothing to compare
    page.wait_for_url(re.compile("left=1"))
    assert page.locator("#found ins, #found del").count() == 0
    assert page.locator("#found article").first.locator(".answer").count() == 1


def test_the_table_of_versions_is_whole_on_a_laptop(chromium: Any, tmp_path: Path) -> None:
    """Before, its last columns lay behind the right edge, and nothing said so."""
    cis = [column.ci for column in COLUMNS if "judge" not in column.key and column.key != "referee_score"]
    figures = {column.key: 0.123 for column in COLUMNS if column.ci in cis} | {ci: [0.112, 0.134] for ci in cis}
    versions = [{"name": name, **figures, "mean_length_ci": [112.0, 123.0]} for name in ("sft", "v1", "v2_safety_sft")]
    (tmp_path / "summary.json").write_text(json.dumps({"versions": versions}))
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.goto(build_report(tmp_path).as_uri())
    assert page.locator("#versions .scroll").first.evaluate("(table) => table.scrollWidth <= table.clientWidth")
    page.close()
