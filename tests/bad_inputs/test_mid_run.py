"""What fails in the middle of a run: the sentence says who, and the next start has what was drawn before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from forked import run_forked
from world import REWARDS, call

if TYPE_CHECKING:
    from chat_server import ChatServer

FAILS = """
def bad(conversations):
    global calls
    calls += 1
    if calls > {calls} and os.path.exists("broken"): {how}
    return good(conversations)
"""
RAISES, EXITS, NAN = "raise RuntimeError('the GPU is gone')", "sys.exit(0)", "return good(conversations) * float('nan')"


def write_reward(folder: Path, *, calls: int, how: str) -> None:
    (folder / "broken").touch()
    (folder / "mine.py").write_text(REWARDS + FAILS.format(calls=calls, how=how), encoding="utf-8")


@pytest.mark.parametrize(
    ("recipe", "option", "calls", "how", "said"),
    [
        ("rejection_sampling", "safety", 1, RAISES, "mine:bad fails (RuntimeError: the GPU is gone, "),
        ("rejection_sampling", "helpfulness", 1, EXITS, "mine:bad fails (SystemExit: 0, "),
        ("evaluate", "safety", 0, EXITS, "mine:bad fails (SystemExit: 0, "),
        ("evaluate", "referee", 0, NAN, "referee"),
        ("collect_preferences", "helpfulness", 0, RAISES, "mine:bad fails (RuntimeError: the GPU is gone, "),
    ],
)
def test_a_reward_that_fails_costs_no_answer(
    place: Callable[[str], Path], recipe: str, option: str, calls: int, how: str, said: str
) -> None:
    folder = place("here")
    write_reward(folder, calls=calls, how=how)
    words = call(recipe, {option: "mine:bad"})
    failed = run_forked(words, folder)
    assert failed.verdict == "one sentence" and said in failed.err, failed.err
    assert list((folder / "out.partial" / "samples").rglob("*.jsonl")) and not (folder / "out").exists()
    (folder / "broken").unlink()
    again = run_forked(words, folder)
    assert again.code == 0 and (folder / "out" / "stage.json").is_file(), again.err
    if recipe != "collect_preferences":  # which reads the pairs that it made of them
        assert "sampling: goes on, 4 of 4 prompts are answered" in again.err


def test_ppo_goes_on_where_its_reward_failed(place: Callable[[str], Path]) -> None:
    folder = place("here")
    write_reward(folder, calls=3, how=RAISES)
    words = call("ppo", {"helpfulness": "mine:bad", "ppo.iterations": "4", "ppo.checkpoint_every": "1"})
    failed = run_forked(words, folder)
    assert failed.verdict == "one sentence" and "mine:bad fails (RuntimeError: the GPU is gone, " in failed.err
    metrics = folder / "out.partial" / "metrics.jsonl"
    before = metrics.read_text().splitlines()
    assert len(before) > 1, "an iteration was done"
    (folder / "broken").unlink()
    again = run_forked(words, folder)
    assert again.code == 0, again.err
    after = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 5
    assert json.loads((folder / "out" / "ppo.json").read_text())["iterations"] == 4


@pytest.mark.parametrize("recipe", ["evaluate", "collect_preferences"])
def test_a_server_that_begins_to_lie_costs_no_answer_that_came(
    place: Callable[[str], Path], chat_server: ChatServer, recipe: str
) -> None:
    folder = place("here")
    lies = True

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        honest = not lies or len(chat_server.asked) <= 2
        return (200, chat_server.answers(body)) if honest else (200, {"choices": [{"message": {"content": 7}}]})

    chat_server.reply = reply
    server = {"url": chat_server.url, "model": "tiny", "retries": "0", "concurrency": "1"}
    options = {f"policy.server.{name}": value for name, value in server.items()}
    words = call(recipe, options, **{"sampling.max_new_tokens": "99"})
    failed = run_forked(words, folder)
    assert failed.verdict == "one sentence" and f"error: policy.server: {chat_server.url} " in failed.err
    asked = len(chat_server.asked)
    lies = False
    again = run_forked(words, folder)
    assert again.code == 0, again.err
    assert "sampling: goes on, 2 of " in again.err and len(chat_server.asked) > asked


def test_an_annotator_that_ends_the_command_loses_no_judgement(place: Callable[[str], Path]) -> None:
    folder = place("here")
    (folder / "broken").touch()
    (folder / "judges.py").write_text(
        "import os, sys\nfrom rlhf.annotation.protocol import Judgement\n\n"
        "class First:\n    name = 'first'\n    def judge(self, pairs):\n"
        "        for number, pair in enumerate(pairs):\n"
        "            if number == 2 and os.path.exists('broken'): sys.exit(0)\n"
        "            open('judged', 'a').write(pair.id + '\\n')\n"
        "            yield Judgement(pair.id, self.name, 'a', 'better', True, True)\n"
    )
    failed = run_forked(call("collect_preferences"), folder)
    assert failed.verdict == "one sentence" and "annotator: judges:First fails (SystemExit: 0, " in failed.err
    (folder / "broken").unlink()
    again = run_forked(call("collect_preferences"), folder)
    assert again.code == 0, again.err
    judged = (folder / "judged").read_text().split()
    assert len(judged) == len(set(judged)) > 2, "no pair is asked about twice"
