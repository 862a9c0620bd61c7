"""V1 and V2 of a small plan, labelled by a proxy, by a judge behind a server and by people on their page in a browser.

Each follows the world's gold, so each has to make models as good as the simulated annotator makes them. The same run is
labelled by one after the other: name another annotator, and what hangs on the labels is made anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml
from chat_server import ChatServer
from chromium import Server, item, open_chromium, open_page, wait_for_next

from rlhf.annotation.page.app import SKIP_REASONS
from rlhf.annotation.store import Store
from rlhf.conversation import Conversation
from rlhf.data.rows import STRENGTHS, Domain
from rlhf.simulation.annotator import NOISE, difference, strength_of
from rlhf.simulation.gold import GoldScorer, Verdict

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[3]
COUNTS = {"train_prompts": 300, "validation_prompts": 20, "test_prompts": 200}
SCALE = 5.0  # of the proxy's rewards: a whole point of gold is "significantly"
REWARDS = f"""
import os, torch
from functools import cache
from rlhf.simulation.gold import GoldScorer

@cache
def scorer():
    return GoldScorer(os.environ["GOLD_WORLD"])

def helpfulness(conversations):
    return torch.tensor([{SCALE} * scorer().judge(talk).helpfulness for talk in conversations])

def safety(conversations):
    found = [scorer().judge(talk) for talk in conversations]
    return torch.tensor([{SCALE} * (v.safety + 0.05 * v.helpfulness) for v in found])
"""
ANSWER = re.compile(r"\[answer ([AB]) begins\]\n(.*?)\n\[answer \1 ends\]", re.DOTALL)
DIALOGUE = re.compile(r"\[the dialogue begins\]\n(.*?)\n\[the dialogue ends\]", re.DOTALL)


class Gold:
    """What is true of two answers to one prompt of a run's world."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.scorer: GoldScorer | None = None

    def verdicts(self, messages: Conversation, *texts: str) -> list[Verdict]:
        scorer = self.scorer = self.scorer or GoldScorer(self.run / "data" / "world.json")
        return [scorer.judge([*messages, {"role": "assistant", "content": text}]) for text in texts]


def judged_by(gold: Gold, body: dict[str, Any]) -> dict[str, Any]:
    """A judge model's reply: what gold says, in the words that it was asked for."""
    asked = body["messages"][-1]["content"]
    if not DIALOGUE.search(asked):
        return ChatServer.answers(body)  # what the server is asked first, to learn what it understands
    domain: Domain = "safety" if "[[A safe]]" in asked else "helpfulness"
    turns = re.split(r"\n\n(?=(?:System|User|Assistant): )", DIALOGUE.search(asked)[1])  # type: ignore[index]
    messages = [{"role": who.lower(), "content": text} for who, text in (turn.split(": ", 1) for turn in turns)]
    texts = dict(ANSWER.findall(asked))
    a, b = gold.verdicts(messages, texts["A"], texts["B"])
    felt = difference(a, b, domain)
    said = "[[tie]]" if abs(felt) < 1e-9 else f"[[{'A' if felt > 0 else 'B'} {strength_of(felt)}]]"
    said += "".join(f" [[{name} {'un' * v.violation}safe]]" for name, v in (("A", a), ("B", b)))
    return {"choices": [{"message": {"content": f"As I see it: {said}"}, "finish_reason": "stop"}] * body["n"]}


class Plan:
    """A run of the demo's configs with fewer prompts, pairs and samples, labelled by one annotator after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.judge = folder, folder / "run", ChatServer()
        self.configs = shutil.copytree(ROOT / "recipes" / "configs" / "embedded", folder / "configs")
        small = {
            "simulated_world": {"mixture": COUNTS},
            "collect_preferences": {"pairs_per_prompt": 2, "safety_pairs_per_prompt": 4},
            "rejection_sampling": {"num_samples": 4},
        }
        for name, fields in small.items():
            file = self.configs / f"{name}.yaml"
            file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))
        (folder / "gold_rewards.py").write_text(REWARDS)
        self.gold = Gold(self.run)
        self.judge.models = ["judge"]
        self.judge.reply = lambda body: (200, judged_by(self.gold, body))

    def labelled(
        self,
        annotator: str,
        meanwhile: Callable[[subprocess.Popen[bytes]], None] = lambda driver: None,
        **options: Any,
    ) -> dict[str, Any]:
        """The run's summary by version, with this annotator; the judge says of every version what it is worth.

        `meanwhile` is called while the driver is at work.
        """
        collected = {"preferences": {"annotator": annotator, "annotator_options": options}}
        evaluated = {"evaluate": {"judges": [{"url": self.judge.url, "model": "judge"}]}}
        steps = [collected, "rewards", "rejection_sampling"]
        versions = [{"name": "v1", "steps": steps}, {"name": "v2", "steps": [*steps, evaluated]}]
        command = [sys.executable, "recipes/iterative_rlhf.py", "--config", str(self.configs / "iterative_rlhf.yaml")]
        command += ["--configs", str(self.configs), "--run", str(self.run), "--versions", json.dumps(versions)]
        paths = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "GOLD_WORLD": str(self.run / "data" / "world.json")}
        said = self.folder / f"{annotator}.log"
        with said.open("wb") as log:
            driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
            try:
                meanwhile(driver)
                code = driver.wait()
            finally:
                driver.terminate()
                driver.wait()
        assert code == 0, said.read_text()[-5000:]
        summary = json.loads((self.run / "summary.json").read_text())
        found = {version["name"]: version for version in summary["versions"]}
        shown = ("gold_helpfulness", "gold_safety", "win_rate_vs_sft", "judge_win_rate", "judge_counts")
        for name, version in found.items():
            print(annotator, name, {key: version[key] for key in version if key.removesuffix("_ci") in shown})
        return found


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    plan = Plan(tmp_path_factory.mktemp("plan"))
    yield plan
    plan.judge.close()


@pytest.fixture(scope="module")
def simulated(plan: Plan) -> dict[str, Any]:
    """The versions that the simulated annotator's labels make."""
    return plan.labelled("simulated")


def assert_as_good(versions: dict[str, Any], simulated: dict[str, Any]) -> None:
    """More helpful than SFT, and as good as with the simulated annotator, within intervals."""
    start, end = versions["sft"], versions["v2"]
    assert end["gold_helpfulness_ci"][0] > start["gold_helpfulness_ci"][1]
    for figure in ("gold_helpfulness_ci", "gold_safety_ci"):
        (low, high), (base_low, base_high) = end[figure], simulated["v2"][figure]
        assert low <= base_high and base_low <= high, figure
    counts = end["judge_counts"]
    assert counts["pairs"] == counts["decided"] + counts["ties"] > 100, "this judge keeps to its word"
    assert end["judge_win_rate"] == pytest.approx(end["win_rate_vs_sft"], abs=0.02)


class InBrowser:
    """Somebody who has the page of `rlhf annotate RUN` open as soon as people are waited for, and judges by keyboard
    what stands on it, as gold has it."""

    def __init__(self, plan: Plan, chromium: Any) -> None:
        self.plan, self.chromium = plan, chromium
        self.seconds: list[float] = []

    def work(self, driver: subprocess.Popen[bytes]) -> None:
        """Until the driver ends."""
        with Store(self.plan.run / "labels.sqlite") as store:
            while not store.batches(people=True):
                if driver.poll() is not None:
                    return
                time.sleep(0.5)
            server = Server(self.plan.run)
            try:
                page = open_page(self.chromium, server.address, "ann")
                while driver.poll() is None:
                    if page.locator("#done").is_visible():
                        page.wait_for_timeout(500)
                        page.keyboard.press("Tab")
                        page.keyboard.press("Enter")  # look again
                    else:
                        self.judge(store, page)
            finally:
                server.kill()

    def judge(self, store: Store, page: Any) -> None:
        """One judgement."""
        before = item(page)
        shown = store.shown(int(before), "ann")
        texts = (shown.pair.a, shown.pair.b) if shown.left == "a" else (shown.pair.b, shown.pair.a)
        for side, text in zip(("left", "right"), texts, strict=True):
            assert letters(page.locator(f"#{side}").inner_text()) == letters(text)
        left, right = self.plan.gold.verdicts(shown.pair.messages, *texts)
        felt = difference(left, right, shown.pair.domain)
        chosen, other = (left, right) if felt >= 0 else (right, left)
        if chosen.violation and not other.violation:
            reason = SKIP_REASONS.index("I prefer an answer that is unsafe to one that is safe")
            keys = ["s", str(reason + 1)]
        else:
            place = STRENGTHS.index(strength_of(felt))
            keys = [str(place + 1 if felt >= 0 else 8 - place)]
            keys += ["w" if left.violation else "q", "p" if right.violation else "o", "Enter"]
        for key in keys:
            page.keyboard.press(key)
        start = time.perf_counter()
        wait_for_next(page, before)
        self.seconds.append(time.perf_counter() - start)


def letters(text: str) -> str:
    """What Markdown, and the numbers of characters that cannot be seen, leave of a text as it is."""
    return "".join(re.findall(r"[^\W\d_]", re.sub(r"⟦U\+\w+⟧", "", text)))


def test_people_by_keyboard_in_a_browser(plan: Plan, simulated: dict[str, Any]) -> None:
    with open_chromium() as chromium:
        person = InBrowser(plan, chromium)
        versions = plan.labelled("people", person.work)
    said = (plan.folder / "people.log").read_text()
    assert "waits for people: 0 of" in said and f"rlhf annotate {plan.run}" in said
    for batch in ("v1/preferences", "v2/preferences"):
        figures = json.loads((plan.run / batch / "statistics.json").read_text())["batch"]
        assert figures["complete"] == figures["pairs"] > 300 and list(figures["annotators"]) == ["ann"]
    assert len(person.seconds) > 600
    print(f"{len(person.seconds)} judgements, median of {1000 * median(person.seconds):.0f} ms to the next pair")
    assert_as_good(versions, simulated)


def test_a_judge_behind_a_server(plan: Plan, simulated: dict[str, Any]) -> None:
    versions = plan.labelled("judge", judges=[{"url": plan.judge.url, "model": "judge"}])
    assert '<section id="judge">' in (plan.run / "report" / "index.html").read_text()
    assert_as_good(versions, simulated)


def test_a_reward_in_a_persons_place(plan: Plan, simulated: dict[str, Any]) -> None:
    proxy = {"reward": "gold_rewards:helpfulness", "safety": "gold_rewards:safety", "safe_above": 0.3 * SCALE}
    assert_as_good(plan.labelled("proxy", **proxy, noise=NOISE * SCALE), simulated)
