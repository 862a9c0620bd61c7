"""The YAML files that come with the recipes: each is read by the command that it opens with, each folder is whole."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.configuration import parse_config
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.plan import make_plan
from rlhf.shipped import RECIPES
from rlhf.stage import StageConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = RECIPES / "configs"
PIPELINE = {"helpfulness_reward", "safety_reward", "rejection_sampling", "ppo", "evaluate"}


def named(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@cache
def config_class(recipe: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"settings_of_{Path(recipe).stem}", ROOT / recipe)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return typing.get_type_hints(module.main)["config"]


def launch_line(file: Path) -> tuple[str, list[str]]:
    """Recipe and arguments of the command in a file's opening comment that names this very file."""
    head = "".join(line[1:] for line in file.read_text().partition("\noutput:")[0].splitlines(True) if line[0] == "#")
    assert re.search(r"\b[CG]PU", head), "no word of the hardware"
    commands = [shlex.split(line) for line in head.replace("\\\n", " ").splitlines() if "recipes/configs/" in line]
    mine = [words for words in commands if f"recipes/configs/{named(file)}" in words]
    assert len(mine) == 1, "no launch line"
    start = next(i for i, word in enumerate(mine[0]) if word.startswith("recipes/") and word.endswith(".py"))
    return mine[0][start], mine[0][start + 1 :]


@pytest.mark.parametrize("recipe", sorted(RECIPES.rglob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_s_options_are_checked_by_all_the_classes_that_declare_them(recipe: Path) -> None:
    """A check of its own takes the place of its bases' unless it calls theirs: of the gate's, for one."""
    classes = config_class(str(recipe.relative_to(ROOT))).__mro__
    own = [kind for kind in classes if "__post_init__" in vars(kind) and kind is not StageConfig]
    assert not [kind for kind in own[:-1] if "super().__post_init__()" not in inspect.getsource(kind.__post_init__)]


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=named)
def test_settings_open_with_hardware_and_a_launch_line_that_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe, arguments = launch_line(file)
    config = parse_config(config_class(recipe), arguments)
    if recipe == "recipes/ppo.py":
        assert config.ppo.batch_size % config.ppo.optimizer.batch_size == 0


def texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | dict):
        for part in content.values() if isinstance(content, dict) else content:
            yield from texts(part)


@pytest.mark.parametrize("folder", sorted({file.parent for file in CONFIGS.glob("*/ppo*.yaml")}), ids=named)
def test_a_folder_with_ppo_is_whole_and_its_stages_read_what_the_plan_makes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "chats.jsonl").touch()
    file = folder / "iterative_rlhf.yaml"
    settings = yaml.safe_load(file.read_text())
    mine = {"hh": tmp_path, "sft_data": tmp_path / "chats.jsonl"}
    given = [
        part for name in mine if name in settings.get("inputs", {}) for part in (f"--inputs.{name}", str(mine[name]))
    ]
    stages = make_plan(parse_config(IterativeConfig, ["--config", str(file), *given]))
    assert {stage.recipe for stage in stages} >= PIPELINE
    made = [str(stage.output) for stage in stages]
    for one in {stage.config_file for stage in stages} | set(folder.glob("ppo*.yaml")):
        for text in texts(yaml.safe_load(one.read_text())):
            if text.startswith(f"{settings['run']}/"):
                assert any(f"{text}/".startswith(f"{output}/") for output in made), f"{one}: {text}"
