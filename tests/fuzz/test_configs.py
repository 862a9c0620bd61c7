"""Every recipe's options with junk for values, through the parser and the door: a sentence, and never a traceback."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from junk import HOW_MANY, PATHS, fuzz, values

from rlhf.configuration import parse_config
from rlhf.errors import InputError, path_sentence
from rlhf.iteration.plan import find_recipe
from rlhf.shorthand import hints_of
from rlhf.stage import open_stage

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(file.stem for file in (ROOT / "recipes").rglob("*.py"))
LONGEST = 700
"""Characters of a sentence."""


def options_of(kind: type, prefix: str = "") -> Iterator[str]:
    for name, hint in hints_of(kind).items():
        yield prefix + name
        for part in (hint, *typing.get_args(hint)):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                yield from options_of(part, f"{prefix}{name}.")


def config_of(recipe: str) -> type:
    spec = importlib.util.spec_from_file_location(f"fuzzed_{recipe}", find_recipe(recipe))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: type = typing.get_type_hints(module.main)["config"]
    return found


def in_order(value: Any, name: str = "") -> Any:
    """A shipped config whose files and folders are those of this test."""
    if isinstance(value, dict):
        return {key: in_order(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [in_order(part, name) for part in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    if value.endswith("checkpoint"):
        return "scores" if name in ("helpfulness", "safety", "referee", "reward", "value_from") else "good"
    return "new" if name == "output" else "rows.jsonl"


def words_of(recipe: str, folder: Path) -> list[str]:
    """The options of a call that is in order, so that one wrong value is met where it is looked at."""
    shipped = ROOT / "recipes" / "configs" / "embedded" / f"{recipe}.yaml"
    if not shipped.is_file():
        return ["--output", "new"]
    file = folder / f"{recipe}.yaml"
    file.write_text(yaml.safe_dump(in_order(yaml.safe_load(shipped.read_text(encoding="utf-8")))), encoding="utf-8")
    return ["--config", str(file), "--output", "new"]


def require_sentence(said: str, words: list[str]) -> None:
    """One line but for what it repeats of the words, and no longer than a person reads."""
    assert not re.search(r"Parser key|Union subtypes|<class '|NestedArg", said), f"the parser's own words: {said}"
    assert said.strip() and said.count("\n") <= "".join(words).count("\n") and len(said) < LONGEST, said


def is_told(words: list[str], kind: type) -> bool:
    """Whether the words are refused by a sentence; False: they are taken. Anything else is a fault."""
    try:
        config: Any = parse_config(kind, words)
        if hasattr(config, "output"):
            open_stage(config)
    except InputError as error:
        require_sentence(str(error), words)
        return True
    except OSError as error:  # `rlhf.errors.mistakes_in_a_sentence` says it
        if path_sentence(error) is None:
            raise
        return True
    return False


@pytest.mark.parametrize("examples", HOW_MANY)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_wrong_value_is_a_sentence(recipe: str, examples: int, folder: Path) -> None:
    kind, start = config_of(recipe), words_of(recipe, folder)
    options = st.sampled_from(list(options_of(kind)))

    def check(given: list[tuple[str, str]]) -> None:
        is_told([*start, *(word for name, value in given for word in (f"--{name}", value))], kind)

    fuzz(st.lists(st.tuples(options, values), min_size=1, max_size=2), check, examples)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path[:20]))
def test_a_wrong_config_file_is_a_sentence(path: str, folder: Path) -> None:
    assert is_told(["--config", path, "--output", "new"], config_of("sft"))
