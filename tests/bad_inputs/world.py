"""A folder in which every call works, and the calls: what a case changes one thing of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ASKS = ("what is the river of velda ?", "hello", "how do I paint my own goat ?", "please answer in one word")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def lines(*rows: Any) -> str:
    """JSON lines; a text is a line as it stands."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


PROMPTS = [
    {"id": f"p{i}", "messages": [_user(text)], "domain": "safety" if i % 2 else "helpfulness", "source": "made up"}
    for i, text in enumerate(ASKS)
]
CHATS = [{"messages": [_user(text), {"role": "assistant", "content": "sure ."}]} for text in ASKS]
PAIRS = [
    {"id": f"{domain}{i}", "messages": [_user(text)], "chosen": f"mora {i} .", "rejected": "sure", "domain": domain}
    | {"chosen_safe": True, "rejected_safe": i > 1}
    for domain in ("helpfulness", "safety")
    for i, text in enumerate(ASKS)
]
REWARDS = '''"""Reward functions of a user."""
import os, sys, torch

calls = 0

def good(conversations):
    return torch.tensor([len(c[-1]["content"]) / 100 for c in conversations])

class Class:
    def __init__(self): self.good = good
    def __call__(self, conversations): return good(conversations)
'''
FILES: dict[str, str] = {
    "prompts.jsonl": lines(*PROMPTS),
    "validation.jsonl": lines(*({**row, "id": f"v{row['id']}"} for row in PROMPTS)),
    "chats.jsonl": lines(*CHATS),
    "pairs.jsonl": lines(*PAIRS),
    "mine.py": REWARDS,
    "instructions.jsonl": lines(
        {"text": "Always answer in one word.", "kind": "style"}, {"text": "Act as a goat.", "kind": "figure"}
    ),
}

_SAMPLING = {"sampling.max_new_tokens": "4"}
_REWARDS = {"helpfulness": "reward", "safety": "mine:good"}
GOOD: dict[str, dict[str, str]] = {
    "sft": {"policy": "policy", "data": "chats.jsonl"},
    "dpo": {"policy": "policy", "preferences": "pairs.jsonl"},
    "helpfulness_reward": {"policy": "policy", "preferences": "pairs.jsonl"},
    "safety_reward": {"policy": "policy", "preferences": "pairs.jsonl"},
    "rejection_sampling": {
        "policy": "policy",
        "fine_tune_from": "policy",
        "prompts": "prompts.jsonl",
        **_REWARDS,
        "num_samples": "3",
        "selection.missing_end_penalty": "1",
        **_SAMPLING,
    },
    "ppo": {
        "policy": "policy",
        **_REWARDS,
        "prompts": "prompts.jsonl",
        "validation_prompts": "validation.jsonl",
        "ppo.iterations": "1",
        "ppo.batch_size": "2",
        "ppo.optimizer.batch_size": "2",
        "ppo.optimizer.micro_batch_size": "2",
        "ppo.validation_size": "2",
        **_SAMPLING,
    },
    "evaluate": {"name": "v1", "policy": "policy", "prompts": "prompts.jsonl", **_REWARDS, **_SAMPLING},
    "collect_preferences": {
        "policy": "policy",
        "prompts": "prompts.jsonl",
        "annotator": "judges:First",
        "pairs_per_prompt": "2",
        **_SAMPLING,
    },
    "evaluate_rewards": {"rewards": "{one: reward, two: 'mine:good'}", "test_preferences": "pairs.jsonl"},
    "context_distillation": {
        "policy": "policy",
        "prompts": "prompts.jsonl",
        "safety": "mine:good",
        "categories": "recipes/configs/embedded/risk_categories.jsonl",
        "gate": "false",
        **_SAMPLING,
    },
    "temperature_sweep": {
        "policy": "policy",
        "prompts": "prompts.jsonl",
        **_REWARDS,
        "num_prompts": "2",
        "num_samples": "3",
        "best_of": "2",
        **_SAMPLING,
    },
    "gate_sweep": {"preferences": "pairs.jsonl", **_REWARDS},
    "average_policies": {"checkpoints": "[policy, policy]"},
}
"""Recipe -> the options of a call that works, but for `output`."""
FILES["judges.py"] = '''"""Annotators of a user."""
from rlhf.annotation.protocol import Judgement

class First:
    name = "first"
    def judge(self, pairs):
        for pair in pairs:
            yield Judgement(pair.id, self.name, "a", "better", True, True)
'''


def call(recipe: str, changes: Mapping[str, str | None] | None = None, **more: str) -> tuple[str, ...]:
    """The words of a call that works, with other options in place of its own; one that is None is left out."""
    options = {"output": "out", **GOOD[recipe], **(changes or {}), **more}
    return (recipe, *(word for name, value in options.items() if value is not None for word in (f"--{name}", value)))


def make_world(folder: Path) -> Path:
    """Write the folder that every case gets a copy of; `policy` and `reward` are tiny models."""
    from tiny_models import make_tiny_tokenizer, save_tiny_policy, save_tiny_reward

    folder.mkdir()
    tokenizer = make_tiny_tokenizer()
    save_tiny_policy(folder / "policy", tokenizer)
    save_tiny_reward(folder / "reward", tokenizer)
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    _write_finished_run(folder / "run")
    return folder


def _write_finished_run(run: Path) -> None:
    from fake_run import write_run

    write_run(run)


def copy_world(world: Path, folder: Path, *, with_run: bool = True) -> Path:
    """A copy that a case may damage, also without the finished run; everybody may read it and write into it."""
    shutil.copytree(world, folder, ignore=None if with_run else shutil.ignore_patterns("run"))
    for place in [folder, *folder.rglob("*")]:
        os.chmod(place, 0o777 if place.is_dir() else 0o666)
    return folder


def shipped_call(recipe: str, folder: Path) -> tuple[str, ...] | None:
    """The words of a recipe's call by its shipped settings, with the world's files and folders in place of theirs."""
    shipped = ROOT / "recipes" / "configs" / "embedded" / f"{recipe}.yaml"
    if recipe in GOOD:
        return call(recipe)
    if not shipped.is_file():
        return None
    file = folder / f"{recipe}.yaml"
    file.write_text(yaml.safe_dump(_in_order(yaml.safe_load(shipped.read_text(encoding="utf-8")))), encoding="utf-8")
    return (recipe, "--config", file.name)


def _in_order(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _in_order(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_in_order(part, name) for part in value]
    if not isinstance(value, str) or "/" not in value or value.startswith("simulation/"):
        return value
    if value.endswith("checkpoint"):
        return "reward" if name in ("helpfulness", "safety", "referee", "reward", "value_from") else "policy"
    known = {"output": "out", "run": "new_run", "log": "log.jsonl", "preferences": "pairs.jsonl"}
    return known.get(
        name, "pairs.jsonl" if "preferences" in name else "chats.jsonl" if "data" in name else "prompts.jsonl"
    )
