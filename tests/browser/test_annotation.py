"""The page in a real browser: by keyboard alone, through kills of the server, several people at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chromium import item, open_page, served_here, wait_for_next

from rlhf.annotation.page.app import make_app
from rlhf.annotation.protocol import Pair
from rlhf.annotation.store import Store
from rlhf.annotation.writing import Answering, Writing, written_rows
from rlhf.jsonl import write_rows
from rlhf.sampling.protocol import Sample, SamplingParams

pytestmark = pytest.mark.browser


def write_pairs(path: Path, count: int, domain: Any = "helpfulness") -> Path:
    ask = [{"role": "user", "content": "Which one?"}]
    write_rows(path, (Pair(ask, f"first {i}", f"second {i}", domain, f"p{i}").to_dict() for i in range(count)))
    return path


def test_two_hundred_by_keyboard_alone_and_the_server_killed_five_times(
    chromium: Any, serve: Any, tmp_path: Path
) -> None:
    server = serve(write_pairs(tmp_path / "pairs.jsonl", 200))
    page = open_page(chromium, server.address, "ann")
    keys = "12345678"
    for number in range(200):
        before = item(page)
        page.keyboard.press(keys[number % 8])
        if (
            number % 40 == 20
        ):  # killed with a choice made and not saved: the page waits, and sends it to the next server
            server.kill()
            page.keyboard.press("Enter")
            page.locator("#status", has_text="does not answer").wait_for()
            server.start()
        else:
            page.keyboard.press("Enter")
        wait_for_next(page, before)
    assert page.locator("#done").is_visible()
    with Store(tmp_path / "pairs.jsonl.labels.sqlite") as store:
        kept = [judgement for *_, judgement in store.judged()]
    assert [judgement.pair for judgement in kept] == [f"p{i}" for i in range(200)], "in order, none lost, none twice"
    sides = ["left" if judgement.choice == judgement.left else "right" for judgement in kept]
    assert sides == ["left" if number % 8 < 4 else "right" for number in range(200)]
    scale = ["significantly", "better", "slightly", "negligibly"]
    assert [judgement.strength for judgement in kept] == [(scale + scale[::-1])[number % 8] for number in range(200)]


def test_three_people_at_once_fill_every_place_and_none_twice(chromium: Any, serve: Any, tmp_path: Path) -> None:
    server = serve(write_pairs(tmp_path / "pairs.jsonl", 60), "--labels", "3")
    pages = [open_page(chromium, server.address, name) for name in ("ann", "bob", "cyd")]
    working = list(pages)
    while working:
        before = [item(page) for page in working]
        for page in working:  # all press before any of them waits
            page.keyboard.press("2")
            page.keyboard.press("Enter")
        for page, place in zip(working, before, strict=True):
            wait_for_next(page, place)
        working = [page for page in working if not page.locator("#done").is_visible()]
    with Store(tmp_path / "pairs.jsonl.labels.sqlite") as store:
        kept = [(judgement.pair, judgement.annotator) for *_, judgement in store.judged()]
    assert len(kept) == len(set(kept)) == 180
    assert set(Counter(pair for pair, _ in kept).values()) == {3}


def test_a_second_window_goes_on_where_the_first_one_is(chromium: Any, serve: Any, tmp_path: Path) -> None:
    server = serve(write_pairs(tmp_path / "pairs.jsonl", 4))
    first, second = (open_page(chromium, server.address, "ann") for _ in range(2))
    for _ in range(2):
        place = item(first)
        first.keyboard.press("1")
        first.keyboard.press("Enter")
        wait_for_next(first, place)
    stale = item(second)
    second.keyboard.press("8")
    second.keyboard.press("Enter")
    wait_for_next(second, stale)
    assert "in another window" in second.locator("#status").inner_text() and item(second) == item(first)
    with Store(tmp_path / "pairs.jsonl.labels.sqlite") as store:
        assert [judgement.strength for *_, judgement in store.judged()] == ["significantly"] * 2


def test_undo_reaches_across_a_restart_and_a_skip_has_its_reason(chromium: Any, serve: Any, tmp_path: Path) -> None:
    server = serve(write_pairs(tmp_path / "pairs.jsonl", 3, "safety"))
    page = open_page(chromium, server.address, "ann")
    first = item(page)
    for key in "1qp":  # left is significantly better and safe, right is unsafe
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    wait_for_next(page, first)
    second = item(page)
    page.keyboard.press("s")
    page.keyboard.press("3")
    wait_for_next(page, second)
    server.kill()
    server.start()
    page = open_page(chromium, server.address, "ann")
    for expected in (second, first):
        before = item(page)
        page.keyboard.press("u")
        wait_for_next(page, before)
        assert item(page) == expected
    assert page.locator("input:checked").evaluate_all("all => all.map(one => one.value)") == [
        "left significantly",
        "true",
        "false",
    ]
    page.keyboard.press("8")  # right, which is unsafe, while left is safe
    page.keyboard.press("Enter")
    assert "cannot be chosen over a safe one" in page.locator("#status").inner_text()
    page.keyboard.press("w")
    page.keyboard.press("Enter")
    wait_for_next(page, first)
    with Store(tmp_path / "pairs.jsonl.labels.sqlite") as store:
        ((*_, kept),) = store.judged()
    assert (kept.strength, kept.chosen_safe, kept.rejected_safe) == ("significantly", False, False)
    assert kept.choice != kept.left


def test_by_mouse_on_a_narrow_screen(chromium: Any, serve: Any, tmp_path: Path) -> None:
    server = serve(write_pairs(tmp_path / "pairs.jsonl", 2))
    page = chromium.new_context(viewport={"width": 360, "height": 740}).new_page()
    page.goto(server.address)
    page.locator("#annotator").fill("ann")
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("radio", name="right: slightly").check(force=True)
    before = item(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360, "nothing sticks out to the side"
    page.get_by_role("button", name="Save").click()
    wait_for_next(page, before)
    page.get_by_role("button", name="Skip").click()
    page.get_by_role("button", name="unreadable").click()
    page.wait_for_selector("#done:not([hidden])")
    with Store(tmp_path / "pairs.jsonl.labels.sqlite") as store:
        assert [(j.strength, j.skipped) for *_, j in store.judged()] == [
            ("slightly", ""),
            (None, "both answers are unreadable"),
        ]


def test_hostile_texts_change_nothing(chromium: Any, serve: Any, tmp_path: Path) -> None:
    """Whatever stands in prompts and answers: no script runs, no request leaves, the page works as before."""
    texts = [
        "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>",
        "</div></section></main><style>* { display: none }</style><iframe src='https://evil.example'></iframe>",
        "![p](https://evil.example/p.png) [l](javascript:window.hurt=1) <https://evil.example>",
        "\u202e\u2066" + "right to left" * 3,
        "word " * 10_000,
        "x" * 50_000,
        '```js" onmouseover="window.hurt = 1\nalert(1)\n```',
    ]
    ask = [{"role": "user", "content": text} for text in texts]
    rows = [Pair([ask[i]], text, texts[i - 1], id=f"p{i}") for i, text in enumerate(texts)]
    write_rows(tmp_path / "pairs.jsonl", (row.to_dict() for row in rows))
    server = serve(tmp_path / "pairs.jsonl")
    page = chromium.new_context(viewport={"width": 400, "height": 800}).new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.address)
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    for _ in texts:
        page.wait_for_selector("#pair:not([hidden])")
        before = item(page)
        assert page.locator("#pair a, #pair img, #pair iframe, #pair script, #pair style").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        page.locator("#left").hover()
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        wait_for_next(page, before)
    assert page.locator("#done").is_visible() and page.evaluate("window.hurt") is None
    assert all(url.startswith(server.address) for url in asked) and not said


def test_a_comparison_on_seven_points_by_keyboard_and_at_360_pixels(chromium: Any, serve: Any, tmp_path: Path) -> None:
    for side in "ab":
        rows = [{"messages": [{"role": "user", "content": f"Q{i}"}], "answer": f"{side}{i}"} for i in range(7)]
        write_rows(tmp_path / f"{side}.jsonl", rows)
    sides = ["--compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--labels", "1"]
    server = serve(tmp_path / "out", *sides)
    page = open_page(chromium, server.address, "ann")
    page.set_viewport_size({"width": 360, "height": 740})
    for key in "1234567":
        before = item(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("#judge input:visible").count() == 7, "no other scale, and no safety"
        page.keyboard.press("8")  # a key of the other scale chooses nothing
        page.keyboard.press("q")
        assert page.locator("input:checked").count() == 0
        page.keyboard.press(key)
        page.keyboard.press("Enter")
        wait_for_next(page, before)
    with Store(tmp_path / "out" / "labels.sqlite") as store:
        kept = [judgement for *_, judgement in store.judged()]
    assert [j.strength for j in kept] == [*PREFERENCE_ORDER, None, *reversed(PREFERENCE_ORDER)]
    assert [j.choice == j.left for j in kept if j.choice != "tie"] == [True] * 3 + [False] * 3


PREFERENCE_ORDER = ("significantly", "better", "slightly")


def test_a_demonstration_by_keyboard_at_360_pixels_survives_a_kill(chromium: Any, serve: Any, tmp_path: Path) -> None:
    server = serve(tmp_path / "mine", "--demonstrate")
    page = chromium.new_context(viewport={"width": 360, "height": 740}).new_page()
    page.goto(server.address)
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    page.wait_for_selector("#write:not([hidden])")
    for turn in range(2):
        page.wait_for_function("() => document.activeElement.id === 'text'")
        page.keyboard.type(f"usg {turn}")  # keys of the page's own, typed into a field, are letters
        page.keyboard.press("Tab")
        page.keyboard.type(f"answer {turn}")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        server.kill()
        page.keyboard.press("Control+Enter")
        page.locator("#status", has_text="does not answer").wait_for()
        server.start()
        page.locator("#status", has_text="Kept").wait_for()
    assert page.locator("#so-far .message").count() == 4 and "2 by you" in page.locator("#mine").inner_text()
    with Store(tmp_path / "mine" / "labels.sqlite") as store:
        kept = [[*(m["content"] for m in entry.messages), entry.answer] for entry in store.entries("demonstration")]
    assert kept == [["usg 0", "answer 0"], ["usg 0", "answer 0", "usg 1", "answer 1"]]


class Echo:
    """A model of a test: no two of its answers are the same."""

    count = 0

    def sample(self, prompts: Any, num_samples: int, params: Any, keys: Any = None) -> list[list[Sample]]:
        self.count += 1
        return [[Sample(f"answer {self.count}", (1,), 0.0, finished=True)]]


@pytest.mark.parametrize("mode", ["write", "red-team"])
def test_models_answer_what_people_write_at_360_pixels(chromium: Any, tmp_path: Path, mode: Any) -> None:
    store = Store(tmp_path / "labels.sqlite")
    writing = Writing(mode, Answering([Echo()], ["model"], SamplingParams()), "v1")
    page = chromium.new_context(viewport={"width": 360, "height": 740}).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    with store, served_here(make_app(store, "token", "", writing)) as address:
        page.goto(f"{address}/token/?annotator=ann")
        for turn in range(2):
            page.wait_for_function("() => document.activeElement.id === 'text'")
            page.keyboard.type(f"Question {turn}")
            page.keyboard.press("Control+Enter")
            page.wait_for_selector("#pair:not([hidden])" if mode == "write" else "#attempt:not([hidden])")
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            if mode == "write":
                page.keyboard.press("2")
                page.keyboard.press("Enter")
            else:
                page.locator("#attempt input[value=true]").check(force=True)
                page.locator("#better").fill("Better not.")
                page.keyboard.press("Control+Enter")
            page.wait_for_function(f"() => document.querySelectorAll('#so-far .message').length === {2 * turn + 2}")
        page.locator("#text").fill("a draft")
        page.reload()
        page.wait_for_function("() => document.querySelector('#text').value === 'a draft'")
        kind = "preferences" if mode == "write" else "safe-answers"
        rows = list(written_rows(store, kind))
    assert [len(row["messages"]) for row in rows] == ([1, 3] if mode == "write" else [2, 4]) and not said
