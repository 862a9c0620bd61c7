"""From the key that saves a judgement to the next pair on the screen, in a real browser, over a store of 10,000 pairs.

    python benchmarks/annotation_page.py

Makes pairs of about 1,000 characters per answer with Markdown in them, of which half are judged already, serves them as
`rlhf annotate` does (every judgement on the disk before it counts), and presses keys in headless Chromium. Prints the
median and the 95th percentile in milliseconds, measured in the page: from the key to two frames after the change.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import Store

TEXT = "A line of text with **bold** words and `code` in it, as models write them.\n\n- one\n- two\n\n"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"]
MEASURE = """() => {
  window.times = [];
  let pressed = 0;
  document.addEventListener("keydown", (event) => { if (event.key === "Enter") pressed = performance.now(); }, true);
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(() => {
    window.times.push(performance.now() - pressed);
  }))).observe(document.body, { attributes: true, attributeFilter: ["data-item"] });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.sqlite"
        ask = [{"role": "user", "content": "Which of the two is it? " * 5}]
        with Store(path) as store:
            store.add_batch("all", (Pair(ask, f"{i}\n{TEXT * 10}", TEXT * 9, id=f"p{i}") for i in range(options.pairs)))
            for i in range(options.pairs // 2):
                store.keep("all", Judgement(f"p{i}", "ann", "a", "better"))
        command = [sys.executable, "-m", "rlhf.cli", "annotate", str(path), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = next(found.group() for line in server.stdout if (found := re.search(r"http://\S+", line)))
            try:
                times = press(address, options.keys)
            finally:
                server.kill()
    ordered = sorted(times)
    print(
        f"{options.pairs} pairs, {len(times)} keys: median {statistics.median(times):.0f} ms, "
        f"95th percentile {ordered[int(0.95 * len(ordered))]:.0f} ms"
    )


def press(address: str, keys: int) -> list[float]:
    """Milliseconds from each Enter to the next pair."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page()
        page.goto(address)
        page.keyboard.type("ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-item]", state="attached")
        page.wait_for_timeout(500)
        page.evaluate(MEASURE)
        for _ in range(keys):
            before = page.evaluate("document.body.dataset.item")
            page.keyboard.press("2")
            page.wait_for_timeout(150)  # nobody is faster; the next pair is fetched meanwhile
            page.keyboard.press("Enter")
            page.wait_for_selector(f"body:not([data-item='{before}'])", state="attached")
            page.wait_for_timeout(50)
        times: list[float] = page.evaluate("window.times")
        browser.close()
    return times


if __name__ == "__main__":
    main()
