"""Bad input gets one clear sentence and a non-zero exit, and nothing is written; what it must say, case by case.

Hundreds more, of every kind, are in tests/bad_inputs. All calls are made by the first test that asks for one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked import Ended, preload, run_forked

PROMPT = [{"role": "user", "content": "what is the river of velda ?"}]
GOOD: dict[str, Any] = {"id": "a", "messages": PROMPT, "chosen": "mora .", "rejected": "sure", "domain": "helpfulness"}
TURNS_SWAPPED = [{"role": "assistant", "content": "mora ."}, *PROMPT]
SYSTEM_LAST = [*PROMPT, {"role": "system", "content": "be brief"}, {"role": "assistant", "content": "mora ."}]


@dataclass(frozen=True)
class Case:
    """One wrong call: the recipe, its options, the words that the sentence must have."""

    recipe: str
    options: Mapping[str, str]
    words: str

    @property
    def command(self) -> list[str]:
        return [self.recipe, *(part for name, value in self.options.items() for part in (f"--{name}", value))]


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


FILES = {
    "good.jsonl": lines(GOOD),
    "cut.jsonl": lines(GOOD, '{"id": "b", "messages": ['),
    "no_field.jsonl": lines(GOOD, {k: v for k, v in GOOD.items() if k != "rejected"}),
    "empty.jsonl": lines({**GOOD, "chosen": "  "}),
    "identical.jsonl": lines(GOOD, GOOD, {**GOOD, "rejected": GOOD["chosen"]}),
    "unsafe_chosen.jsonl": lines({**GOOD, "chosen_safe": False, "rejected_safe": True}),
    "swapped.jsonl": lines({"messages": TURNS_SWAPPED}),
    "system_last.jsonl": lines({"messages": SYSTEM_LAST}),
    "no_prompts.jsonl": "",
    "prompts.jsonl": lines({"id": "p", "messages": PROMPT}),
    "broken.yaml": "seed: [1\n",
}
REWARD = {"output": "out", "policy": "policy"}
SFT = {"output": "out", "policy": "policy"}
SAMPLE = {
    "output": "out",
    "policy": "policy",
    "fine_tune_from": "policy",
    "prompts": "prompts.jsonl",
    "helpfulness": "policy",
    "safety": "policy",
}
OWN_REWARDS = {"helpfulness": "mine:helpful", "safety": "mine:safe"}
EVALUATE = {"output": "out", "name": "v1", "policy": "policy", "prompts": "prompts.jsonl"}
PPO = {
    "output": "out",
    "policy": "policy",
    "helpfulness": "policy",
    "safety": "policy",
    "prompts": "prompts.jsonl",
    "validation_prompts": "prompts.jsonl",
}
CASES = {
    "unknown key": Case("sft", {**SFT, "data": "good.jsonl", "sed": "1"}, r"sed"),
    "wrong type": Case("ppo", {**PPO, "seed": "one"}, r"seed"),
    "a value out of range": Case("evaluate", {**EVALUATE, "sampling.temperature": "-1"}, r"temperature: .* got -1"),
    "broken YAML": Case("sft", {"config": "broken.yaml", **SFT, "data": "good.jsonl"}, r"broken.yaml|seed"),
    "missing file": Case(
        "rejection_sampling",
        {**SAMPLE, **OWN_REWARDS, "policy": "runs/demo/sft/checkpoint"},
        r"policy: runs/demo/sft/checkpoint does not exist; `make demo` writes it",
    ),
    "malformed line": Case("helpfulness_reward", {**REWARD, "preferences": '["cut.jsonl"]'}, r"cut.jsonl:2: "),
    "missing field": Case(
        "safety_reward", {**REWARD, "preferences": '["no_field.jsonl"]'}, r"no_field.jsonl:2: rejected"
    ),
    "empty answer": Case("helpfulness_reward", {**REWARD, "preferences": '["empty.jsonl"]'}, r"empty.jsonl:1: chosen"),
    "identical pair": Case(
        "helpfulness_reward", {**REWARD, "preferences": '["identical.jsonl"]'}, r"identical.jsonl:3: .*identical"
    ),
    "unsafe chosen over safe": Case(
        "safety_reward", {**REWARD, "preferences": '["unsafe_chosen.jsonl"]'}, r"unsafe_chosen.jsonl:1: .*safe"
    ),
    "no row of the domain": Case(
        "safety_reward", {**REWARD, "preferences": '["good.jsonl"]'}, r"no row of domain safety"
    ),
    "role order": Case("sft", {**SFT, "data": "swapped.jsonl"}, r"swapped.jsonl:1: "),
    "system message last": Case("sft", {**SFT, "data": "system_last.jsonl"}, r"system_last.jsonl:1: .*system"),
    "empty prompt file": Case(
        "rejection_sampling", {**SAMPLE, **OWN_REWARDS, "prompts": "no_prompts.jsonl"}, r"no_prompts.jsonl"
    ),
    "greedy PPO": Case("ppo", {**PPO, "sampling.temperature": "0"}, r"sampling.temperature: must be above 0"),
    "PPO on a nucleus": Case("ppo", {**PPO, "sampling.top_p": "0.9"}, r"sampling.top_p: must be 1 for PPO, got 0.9"),
    "an output that exists": Case("sft", {**SFT, "data": "chat.jsonl", "output": "policy"}, r"output: policy exists"),
    "a folder without the HH files": Case("hh_data", {"output": "out", "data": "policy"}, r"data: policy has no"),
    "no checkpoint": Case("evaluate", {**EVALUATE, "policy": "empty_folder"}, r"empty_folder"),
    "checkpoint without reward head": Case("rejection_sampling", SAMPLE, r"policy .*(head|reward)"),
    "no checkpoint to fine-tune": Case("sft", {**SFT, "policy": "empty_folder", "data": "chat.jsonl"}, r"empty_folder"),
    "a hub name": Case("sft", {**SFT, "policy": "org/model", "data": "chat.jsonl"}, r"`hf download org/model"),
    "an empty validation file": Case(
        "ppo", {**PPO, **OWN_REWARDS, "validation_prompts": "no_prompts.jsonl"}, r"no_prompts.jsonl: is empty"
    ),
    "a scorer that fails": Case(
        "evaluate", {**EVALUATE, "scorer": "mine:helpful", "world": "good.jsonl"}, r"scorer: mine:helpful.*fails"
    ),
    "a reward that is not there": Case(
        "rejection_sampling", {**SAMPLE, **OWN_REWARDS, "safety": "mine:none"}, r"safety: mine:none"
    ),
    "a task that nobody asked for": Case(
        "leaderboard", {"output": "out", "models": "{a: policy}", "local": "{boolq: good.jsonl}"}, r"local: boolq"
    ),
    "nothing to merge": Case("merge_adapter", {"output": "out", "checkpoint": "policy"}, r"no adapter"),
    "two tokenizers that differ": Case("evaluate", {**EVALUATE, "baseline": "other_policy"}, r"tokenizer"),
}
FILES["mine.py"] = "def helpful(conversations):\n    return len(conversations)\n\n\nsafe = helpful\n"
FILES["chat.jsonl"] = lines({"messages": [*PROMPT, {"role": "assistant", "content": "mora ."}]})


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, tiny_policy_path: Path) -> dict[str, tuple[Ended, set[str]]]:
    """How each case ended, and what appeared in its folder."""
    preload()
    here = tmp_path_factory.mktemp("bad_input")
    folders = {name: here / re.sub(r"\W", "_", name) for name in CASES}
    for folder in folders.values():
        folder.mkdir()
        for name, content in FILES.items():
            (folder / name).write_text(content)
        shutil.copytree(tiny_policy_path, folder / "policy")
        (folder / "empty_folder").mkdir()
        other = shutil.copytree(tiny_policy_path, folder / "other_policy")
        tokenizer = (other / "tokenizer.json").read_text()
        (other / "tokenizer.json").write_text(tokenizer.replace('"<pad>"', '"<fill>"'))
        settings = (other / "tokenizer_config.json").read_text()
        (other / "tokenizer_config.json").write_text(settings.replace('"<pad>"', '"<fill>"'))

    def call(name: str) -> tuple[Ended, set[str]]:
        before = set(os.listdir(folders[name]))
        done = run_forked(CASES[name].command, folders[name])
        return done, set(os.listdir(folders[name])) - before - {"__pycache__"}

    return {name: call(name) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_nothing_written(answers: dict[str, tuple[Ended, set[str]]], name: str) -> None:
    done, written = answers[name]
    assert done.code == 2, done.err
    said = done.err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: "), done.err
    assert re.search(CASES[name].words, said[0]), said[0]
    assert not done.out.strip() and not written
