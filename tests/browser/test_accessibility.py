"""axe-core finds no violation on the annotation page, in any of its states, nor on a run's report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from chromium import open_page, served_here

from rlhf.annotation.page.app import default_guidelines, make_app
from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.scales import EVALUATION, PREFERENCE, Scale
from rlhf.annotation.store import Store
from rlhf.annotation.writing import Answering, Mode, Writing
from rlhf.conversation import Conversation
from rlhf.report import build_report
from rlhf.sampling.protocol import Sample, SamplingParams

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))
from fake_run import write_run

pytestmark = pytest.mark.browser
TALK: Conversation = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How do I *sort* a list?"},
    {"role": "assistant", "content": "Of what?"},
    {"role": "user", "content": "Of numbers."},
]
CODE = "```python\nsorted(numbers, key=str, reverse=True)  # and so on, for a long time, to the right\n```\n"
LONG = f"# With `sorted`\n\n1. one\n2. two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n{CODE}" + "word " * 900


class Echo:
    """A model of a test: no two of its answers are the same."""

    count = 0

    def sample(self, prompts: Any, num_samples: int, params: Any, keys: Any = None) -> list[list[Sample]]:
        self.count += 1
        return [[Sample(f"answer {self.count}", (1,), 0.0, finished=True)]]


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def require_no_violation(page: Any, state: str) -> None:
    """Of every rule that axe-core has, those of best practice too, at both widths."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        # colours take a moment to change
        page.evaluate("Promise.allSettled(document.getAnimations().map(each => each.finished))")
        found = axe.Axe().run(page).response["violations"]
        said = [f"{v['id']}: {node['target']} {node['failureSummary']}" for v in found for node in v["nodes"]]
        assert not said, f"{state}, {width} pixels:\n" + "\n".join(said)


@pytest.mark.parametrize("scale", [PREFERENCE, EVALUATION], ids=lambda scale: scale.name)
def test_the_page_of_pairs(chromium: Any, tmp_path: Path, scheme: Any, scale: Scale) -> None:
    pairs = [Pair(TALK, LONG, "`sorted`", domain, id=domain) for domain in ("helpfulness", "safety")]
    with Store(tmp_path / "labels.sqlite") as store:
        store.add_batch("batch", pairs, labels=2, scale=scale.name)
        app = make_app(store, "token", default_guidelines(scale), owner="owner")
        with served_here(app) as address:
            page = chromium.new_context(color_scheme=scheme).new_page()
            page.goto(f"{address}/token/")
            require_no_violation(page, "the name is asked for")
            page = open_page(chromium, f"{address}/token/", "ann")
            page.emulate_media(color_scheme=scheme)
            require_no_violation(page, "a pair")
            page.keyboard.press("1")
            page.keyboard.press("q")
            require_no_violation(page, "a choice")
            page.keyboard.press("s")
            require_no_violation(page, "the reasons")
            for _ in pairs:
                page.keyboard.press("2")
                page.wait_for_timeout(200)
                page.keyboard.press("s")
            page.wait_for_selector("#done:not([hidden])")
            require_no_violation(page, "nothing is left")
            store.keep("batch", Judgement("safety", "bob", "a", "slightly", True, True, "a", 1.0))
            page.goto(f"{address}/owner/")
            require_no_violation(page, "the owner's page")


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_pages_of_those_who_write(chromium: Any, tmp_path: Path, scheme: Any, mode: Mode) -> None:
    writing = Writing(mode, None if mode == "demonstrate" else Answering([Echo()], ["m"], SamplingParams()), "v1")
    with Store(tmp_path / "labels.sqlite") as store:
        app = make_app(store, "token", default_guidelines(PREFERENCE, mode), writing)
        with served_here(app) as address:
            page = chromium.new_context(color_scheme=scheme).new_page()
            page.goto(f"{address}/token/?annotator=ann")
            page.wait_for_selector("#write:not([hidden])")
            require_no_violation(page, "the prompt")
            page.locator("#text").fill("How so?")
            if mode == "demonstrate":
                page.locator("#answer").fill("So.")
            page.keyboard.press("Control+Enter")
            after = {"write": "#pair:not([hidden])", "demonstrate": "#so-far .message"}
            page.wait_for_selector(after.get(mode, "#attempt:not([hidden])"))
            if mode == "red-team":
                page.locator("#attempt input[value=true]").check(force=True)
            require_no_violation(page, "the answer")


def test_the_report_of_a_run(chromium: Any, tmp_path: Path, scheme: Any) -> None:
    page = chromium.new_context(color_scheme=scheme).new_page()
    page.goto(build_report(write_run(tmp_path / "run", gold=False)).as_uri())
    page.locator("#search").scroll_into_view_if_needed()
    page.wait_for_selector("#found article")
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    require_no_violation(page, "the report")
