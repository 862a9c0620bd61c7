"""Bad options, paths and config files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from case import Case
from world import GOOD, call, shipped_call

SEEDS = ("-1", "2147483648", "18446744073709551616", "9" * 5000, "1.5", "one", "null", "[1]", "1e400", "0x1")
NUMBERS = {
    "sft": ("finetuning.optimizer.learning_rate", "finetuning.optimizer.batch_size", "finetuning.max_length"),
    "dpo": ("beta", "finetuning.optimizer.epochs", "finetuning.optimizer.micro_batch_size"),
    "helpfulness_reward": ("training.optimizer.learning_rate", "training.max_length", "other_share"),
    "rejection_sampling": ("num_samples", "sampling.temperature", "sampling.top_p", "selection.missing_end_penalty"),
    "ppo": ("ppo.beta", "ppo.iterations", "ppo.batch_size", "sampling.max_new_tokens", "gate.threshold"),
    "evaluate": ("samples_per_prompt", "sampling.top_k", "sampling.repetition_penalty", "max_prompt_tokens"),
    "collect_preferences": ("pairs_per_prompt", "held_out", "labels_per_pair"),
    "temperature_sweep": ("num_prompts", "best_of", "num_samples"),
}
BAD_NUMBERS = ("-1", ".nan", "1e400", "many", "9" * 400, "null", "[]")
OUTPUTS = (
    "a" * 300,
    "a/" * 3000 + "b",
    "prompts.jsonl/out",
    "policy",
    "",
    "\x00",
    "circle/out",
    "pipe",
    "/dev/null",
    "~",
)
INPUTS = (
    *("a" * 300, "a/" * 3000, "prompts.jsonl/x", "nowhere", "", "\x00", "circle", "pipe", "/dev/null", "acme/no-such"),
    *("\udcff", "http://localhost:1", "."),
)
YAML = {
    "a key twice": "seed: 1\nseed: 2\n",
    "a nested key twice": "sampling: {top_k: 1, top_k: 2}\n",
    "an unknown key": "sed: 1\n",
    "an unknown nested key": "sampling: {heat: 1}\nfinetuning: {optimizer: {rate: 1}}\nppo: {optimizer: {rate: 1}}\n",
    "an unknown group": "sampler: {top_k: 1}\n",
    "an anchor bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{n}: &{n} [{', '.join(['*' + p] * 9)}]\n" for p, n in itertools.pairwise("abcdefghi")),
    "an alias of itself": "seed: &a [*a]\n",
    "a merge of itself": "sampling: &a {<<: *a, top_k: 1}\n",
    "a tag of Python": "seed: !!python/object/apply:os.getcwd []\n",
    "a list": "- seed\n",
    "a number": "1\n",
    "a tab": "sampling:\n\ttop_k: 1\n",
    "cut off": "seed: [1\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "deep": "seed: " + "[" * 3000 + "]" * 3000 + "\n",
    "a group that is text": "sampling: hot\nfinetuning: much\nppo: much\ntraining: much\n",
    "a group that is null": "sampling: null\nfinetuning: null\nppo: null\ntraining: null\n",
    "keys that are numbers": "1: 2\n",
    "keys that are lists": "? [a, b]\n: 1\n",
    "a date for a seed": "seed: 2024-01-01\n",
    "a boolean for a seed": "seed: yes\n",
    "control characters": "seed: \x1b[31m1\n",
    "another encoding": "\xff\xfe",
    "a long line": "seed: " + "x" * 1_000_000 + "\n",
}


def cases() -> Iterator[Case]:
    """All of this file."""
    yield from _seeds()
    yield from _numbers()
    yield from _paths()
    yield from _yaml()


def _taken(value: str) -> str:
    return {"0x1": "YAML 1.1's hexadecimal one is a number"}.get(value, "")


def _seeds() -> Iterator[Case]:
    recipes = [name for name in GOOD if name not in ("evaluate_rewards", "gate_sweep", "average_policies")]
    for number, recipe in enumerate(recipes):
        for value in SEEDS[number % 2 :: 2]:
            yield Case(
                "seeds out of range", f"{recipe}: {value[:24]}", call(recipe, seed=value), accepted=_taken(value)
            )
    for value in SEEDS:
        words = ("iterative_rlhf", "--run", "out", "--configs", "recipes/configs/embedded", "--seed", value)
        yield Case("seeds out of range", f"driver: {value[:24]}", words, accepted=_taken(value))


NUMBERS_TAKEN = {
    ("max_prompt_tokens", "null"): "null is no limit",
    ("missing_end_penalty", "null"): "null is the default: an answer without an end is not kept",
    ("max_length", "null"): "null is the model's context",
    ("beta", "null"): "",
    ("sampling.top_k", "null"): "",
    ("iterations", "9" * 400): "",
}


def _numbers() -> Iterator[Case]:
    for recipe, options in NUMBERS.items():
        for option in options:
            for value in BAD_NUMBERS:
                reason = NUMBERS_TAKEN.get((option.rpartition(".")[2], value), "")
                yield Case(
                    "numbers out of range",
                    f"{recipe} {option}: {value[:8]}",
                    call(recipe, {option: value}),
                    accepted=reason,
                )


def odd_places(folder: Path) -> None:
    """A circle of links and a pipe."""
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    (folder / "closed").mkdir(mode=0o000)
    (folder / "secret.jsonl").write_text("{}")
    (folder / "secret.jsonl").chmod(0o000)
    (folder / "shut").mkdir()
    (folder / "shut").chmod(0o555)


def _paths() -> Iterator[Case]:
    for number, recipe in enumerate(GOOD):
        for value in OUTPUTS[number % 3 :: 3]:
            reason = "a folder called ~ is a folder" if value == "~" else ""
            yield Case("output paths", f"{recipe}: {value[:20]!a}", call(recipe, output=value), odd_places, reason)
        yield Case(
            "folders not to be written or read",
            f"{recipe}: output",
            call(recipe, output="shut/out"),
            odd_places,
            obeys_modes=True,
        )
        yield Case(
            "folders not to be written or read",
            f"{recipe}: in closed",
            call(recipe, output="closed/out"),
            odd_places,
            obeys_modes=True,
        )
        first = next(iter(GOOD[recipe]))
        if first == "name":
            first = "policy"
        for value in INPUTS[number % 3 :: 3]:
            yield Case("input paths", f"{recipe} {first}: {value[:20]!a}", call(recipe, {first: value}), odd_places)
        for option, source in GOOD[recipe].items():
            if source.endswith(".jsonl"):
                for value in ("secret.jsonl", "closed/rows.jsonl"):
                    yield Case(
                        "folders not to be written or read",
                        f"{recipe} {option}: {value}",
                        call(recipe, {option: value}),
                        odd_places,
                        obeys_modes=True,
                    )
                yield Case("input paths", f"{recipe} {option}: policy", call(recipe, {option: "policy"}))
                yield Case("input paths", f"{recipe} {option}: mine.py", call(recipe, {option: "mine.py"}))
                break


def _yaml() -> Iterator[Case]:
    recipes = ("sft", "rejection_sampling", "ppo", "evaluate", "helpfulness_reward")
    for number, (name, text) in enumerate(YAML.items()):
        for recipe in (recipes[number % 5], recipes[(number + 2) % 5]):
            yield Case("config files", f"{recipe}: {name}", (*call(recipe), "--config", "bad.yaml"), _writes(text))
    for value in INPUTS:
        yield Case("config files", f"sft: {value[:20]!a}", ("sft", "--config", value), odd_places)
    for name in ("a key twice", "an anchor bomb", "an alias of itself", "a tag of Python"):
        words = (*call("sft"), "--finetuning", "bad.yaml")
        yield Case("config files", f"sft, of a group: {name}", words, _writes(YAML[name]))
    for name, text in YAML.items():
        yield Case("config files", f"plan: {name}", ("rlhf", "plan", "--config", "bad.yaml"), _writes(_plan(text)))


def _plan(more: str) -> str:
    return f"run: out\nconfigs: recipes/configs/embedded\n{more}"


def _writes(text: str, name: str = "bad.yaml"):
    def prepare(folder: Path) -> None:
        (folder / name).write_text(text, encoding="latin-1" if text.startswith("\xff") else "utf-8")

    return prepare


_ = (Sequence, shipped_call)
