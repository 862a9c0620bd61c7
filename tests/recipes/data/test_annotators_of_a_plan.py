"""V1 and V2 of a small plan, labelled by a proxy, by a judge behind a server and by people on their page.

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
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("fastapi")
import httpx2
from chat_server import ChatServer

from rlhf.annotation.store import Store
from rlhf.conversation import Conversation
from rlhf.data.rows import Domain
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


def label(gold: Gold, store: Store, page: httpx2.Client, pair: Mapping[str, Any]) -> None:
    """One judgement on the page, as gold has it."""
    shown = store.shown(pair["item"], "ann")
    texts = (shown.pair.a, shown.pair.b) if shown.left == "a" else (shown.pair.b, shown.pair.a)
    left, right = gold.verdicts(shown.pair.messages, *texts)
    felt = difference(left, right, shown.pair.domain)
    chosen, other = (left, right) if felt >= 0 else (right, left)
    body: dict[str, Any] = {"annotator": "ann", "item": pair["item"], "seconds": 2.0}
    if chosen.violation and not other.violation:
        body |= {"skipped": "I prefer an answer that is unsafe to one that is safe"}
    else:
        body |= {"choice": "left" if felt >= 0 else "right", "strength": strength_of(felt)}
        body |= {"left_safe": not left.violation, "right_safe": not right.violation}
    assert page.post("api/judge", json=body).raise_for_status()


@contextmanager
def people_at(run: Path, gold: Gold) -> Iterator[list[int]]:
    """Somebody who opens the page of `rlhf annotate RUN` as soon as people are waited for, and judges what it shows."""
    kept, over, failed = [0], threading.Event(), []

    def work() -> None:
        with Store(run / "labels.sqlite") as store:
            while not store.batches(people=True):
                if over.wait(0.5):
                    return
            command = [sys.executable, "-m", "rlhf.cli", "annotate", str(run), "--port", "0"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
                assert server.stdout is not None
                address = next(found[1] for line in server.stdout if (found := re.match(r"open (\S+) in", line)))
                with httpx2.Client(base_url=address, timeout=60.0) as page:
                    while not over.is_set():
                        pair = page.get("api/next", params={"annotator": "ann"}).raise_for_status().json()["pair"]
                        if pair is None:
                            time.sleep(0.5)
                            continue
                        label(gold, store, page, pair)
                        kept[0] += 1
                server.terminate()

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        over.set()
        thread.join(30)
    assert not failed, failed


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The demo's configs with fewer prompts, pairs and samples."""
    configs = shutil.copytree(ROOT / "recipes" / "configs" / "embedded", tmp_path / "configs")
    write_small(configs)
    return configs


def write_small(configs: Path) -> None:
    small = {
        "simulated_world": {"mixture": COUNTS},
        "collect_preferences": {"pairs_per_prompt": 2, "safety_pairs_per_prompt": 4},
        "rejection_sampling": {"num_samples": 4},
    }
    for name, fields in small.items():
        file = configs / f"{name}.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))
    (configs.parent / "gold_rewards.py").write_text(REWARDS)


def labelled(configs: Path, run: Path, judge: ChatServer, annotator: str, **options: Any) -> dict[str, Any]:
    """The run's summary by version, with this annotator; the judge says of every version what it is worth."""
    collected = {"preferences": {"annotator": annotator, "annotator_options": options}}
    evaluated = {"evaluate": {"judge": {"url": judge.url, "model": "judge"}}}
    steps = [collected, "rewards", "rejection_sampling"]
    versions = [{"name": "v1", "steps": steps}, {"name": "v2", "steps": [*steps, evaluated]}]
    command = [sys.executable, "recipes/iterative_rlhf.py", "--config", str(configs / "iterative_rlhf.yaml")]
    command += ["--configs", str(configs), "--run", str(run)]
    command += ["--versions", json.dumps(versions)]
    paths = os.pathsep.join([str(configs.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "GOLD_WORLD": str(run / "data" / "world.json")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if annotator == "people":
        assert "waits for people: 0 of" in done.stdout and f"rlhf annotate {run}" in done.stdout, done.stdout
    versions = {version["name"]: version for version in json.loads((run / "summary.json").read_text())["versions"]}
    shown = ("gold_helpfulness", "gold_safety", "win_rate_vs_sft", "judge_win_rate", "judge_counts")
    for name, version in versions.items():
        print(
            annotator, name, {key: version.get(key) for key in version if key.removesuffix("_ci") in shown}, flush=True
        )
    return versions


def test_every_annotator_that_follows_gold_makes_models_as_good(configs: Path, chat_server: ChatServer) -> None:
    run, judge = configs.parent / "run", chat_server
    gold = Gold(run)
    judge.models = ["judge"]
    judge.reply = lambda body: (200, judged_by(gold, body))
    found = {"simulated": labelled(configs, run, judge, "simulated")}
    with people_at(run, gold) as kept:
        found["people"] = labelled(configs, run, judge, "people")
    for batch in ("v1/preferences", "v2/preferences"):
        figures = json.loads((run / batch / "statistics.json").read_text())["batch"]
        assert figures["complete"] == figures["pairs"] > 300 and list(figures["annotators"]) == ["ann"]
    assert kept[0] > 600
    found["judge"] = labelled(configs, run, judge, "judge", judges=[{"url": judge.url, "model": "judge"}])
    proxy = {"reward": "gold_rewards:helpfulness", "safety": "gold_rewards:safety", "safe_above": 0.3 * SCALE}
    found["proxy"] = labelled(configs, run, judge, "proxy", **proxy, noise=NOISE * SCALE)
    assert '<section id="judge">' in (run / "report" / "index.html").read_text()
    for name, versions in found.items():
        start, end = versions["sft"], versions["v2"]
        assert end["gold_helpfulness_ci"][0] > start["gold_helpfulness_ci"][1], name
        for figure in ("gold_helpfulness_ci", "gold_safety_ci"):
            (low, high), (base_low, base_high) = end[figure], found["simulated"]["v2"][figure]
            assert low <= base_high and base_low <= high, (name, figure)
        counts = end["judge_counts"]
        assert counts["pairs"] == counts["decided"] + counts["ties"] > 100, "this judge keeps to its word"
        assert end["judge_win_rate"] == pytest.approx(end["win_rate_vs_sft"], abs=0.02)
