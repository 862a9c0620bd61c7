"""How long a report takes to open in a real browser: five versions that answered 10,000 prompts, from the file system.

    python benchmarks/report_page.py

Makes a run's evaluations (random words, about 60 an answer), writes its report, and opens it in headless Chromium, each
time in a new context. Prints the page's size, the seconds to write it, and as the median over openings: to the page's
first paint and to its load event, from jumping to the answers to the first ten of them, and from a key in the search to
what was found among all of them. Another program on the machine lengthens these; the processor's time in the page's
main thread, which is printed too, it does not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.evaluation.answers import Answer, write_answers
from rlhf.evaluation.policies.versions import against, version_figures
from rlhf.report import build_report
from rlhf.stage import write_json

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"]
OPENED = """() => {
  const [load] = performance.getEntriesByType("navigation");
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  return [paint ? paint.startTime : load.loadEventEnd, load.loadEventEnd];
}"""
FOUND = """new Promise((done) => {
  const begun = performance.now();
  const seen = new MutationObserver(() => {
    seen.disconnect();
    requestAnimationFrame(() => done(performance.now() - begun));
  });
  seen.observe(document.getElementById("found"), { childList: true });
  %s
})"""
TO_ANSWERS = "() => " + FOUND % 'document.getElementById("answers").scrollIntoView();'
SEARCH = "(word) => " + FOUND % (
    'const input = document.getElementById("q"); input.value = word; '
    'input.dispatchEvent(new Event("input", { bubbles: true }));'
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=5)
    parser.add_argument("--words", type=int, default=60, help="of an answer, on average")
    parser.add_argument("--openings", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, options.prompts, options.versions, options.words)
        begun = time.perf_counter()
        page = build_report(run)
        seconds = time.perf_counter() - begun
        print(f"{options.versions} versions of {options.prompts} prompts: {page.stat().st_size / 1e6:.1f} MB")
        print(f"written in {seconds:.1f} s")
        opened = open_page(page, options.openings)
        for name in opened[0]:
            own = [1000 * times[name] for times in opened]
            print(f"{name}: {statistics.median(own):.0f} ms ({min(own):.0f} to {max(own):.0f})")


def make_run(run: Path, prompts: int, versions: int, words: int) -> None:
    """The evaluations of a run, with scores of two reward models that rise from version to version."""
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]

    def text(count: int) -> str:
        return " ".join(rng.choices(known, k=max(1, round(rng.gauss(count, count / 3)))))

    asked = [text(words // 2) for _ in range(prompts)]
    first: list[Answer] = []
    for number in range(versions):
        name = "sft" if number == 0 else f"v{number}"
        answers = []
        for i, question in enumerate(asked):
            helpful, safe = rng.gauss(0.2 * number, 1), rng.gauss(1 + 0.1 * number, 1)
            answer, ask = text(words), [{"role": "user", "content": question}]
            blank = Answer(f"p{i:06d}", 0, ask, "safety" if i % 3 == 0 else "helpfulness", "random", answer, 80, True)  # type: ignore[arg-type]
            answers.append(replace(blank, helpfulness=helpful, safety=safe, reward=safe if i % 3 == 0 else helpful))
        first = first or answers
        opponents = [] if number == 0 else first
        folder = run / ("sft_evaluation" if number == 0 else f"{name}/evaluation")
        folder.mkdir(parents=True)
        write_answers(folder / "answers.jsonl", answers, against(answers, opponents))
        write_json(folder / "evaluation.json", version_figures(name, answers, opponents))


def open_page(page: Path, openings: int) -> list[dict[str, float]]:
    """Of each opening: name -> seconds."""
    from playwright.sync_api import sync_playwright

    found: list[dict[str, float]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(openings):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            tab: Any = context.new_page()
            inside = context.new_cdp_session(tab)
            inside.send("Performance.enable", {"timeDomain": "threadTicks"})

            def processor(inside: Any = inside) -> float:
                metrics = inside.send("Performance.getMetrics")["metrics"]
                return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

            before = processor()
            tab.goto(page.as_uri())
            tab.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
            paint, load = tab.evaluate(OPENED)
            times = {
                "first paint": paint / 1000,
                "load event": load / 1000,
                "  processor time of it": processor() - before,
            }
            for name, script, word in (
                ("to the answers", TO_ANSWERS, None),
                ("a search", SEARCH, "ab cd"),
                ("the next search", SEARCH, "xyz"),
            ):
                before = processor()
                times[name] = tab.evaluate(script, word) / 1000
                times[f"  processor time of {name}"] = processor() - before
            found.append(times)
            context.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
