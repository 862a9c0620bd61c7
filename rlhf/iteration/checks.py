"""What can be known to be wrong before the first stage runs: every stage's recipe, YAML and options are parsed."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf.configuration import ConfigReader
from rlhf.errors import InputError
from rlhf.imports import ANYTHING, raised
from rlhf.iteration.plan import RECIPES, PlannedStage, maker_of, recipe_file
from rlhf.metrics import asked_trackers
from rlhf.paths import require_files, why_no_file


def check_plan(stages: Sequence[PlannedStage], recipes: Path = RECIPES) -> dict[str, Any]:
    """Parse every stage's configuration as its recipe will; find inputs from outside the run.

    Returns stage -> the config of its recipe.

    Raises InputError, one sentence that names the stage and the file.
    """
    classes: dict[str, type] = {}
    configs: dict[str, Any] = {}
    reader = ConfigReader()
    for stage in stages:
        if stage.config_file is not None and not stage.config_file.is_file():
            wrong = f"{stage.name}: {stage.config_file} {why_no_file(stage.config_file)}"
            raise InputError(f"{wrong}; configs needs a YAML file for every recipe, unless the step's config names one")
        if stage.recipe not in classes:
            classes[stage.recipe] = _config_class(recipe_file(stage, recipes), stage)
        try:
            config: Any = reader.read(classes[stage.recipe], stage.arguments)
            configs[stage.name] = config
            asked_trackers(getattr(config, "trackers", ()))
        except InputError as error:
            where = stage.name if stage.config_file is None else f"{stage.name} ({stage.config_file})"
            raise InputError(f"{where}: {error}") from error
    for stage in stages:
        for path in stage.inputs:
            if not path.exists() and maker_of(path, stages) is None:
                require_files(**{stage.name: path})
    return configs


def _config_class(path: Path, stage: PlannedStage) -> type:
    """What the `main` of a recipe takes; of one of the user's own whatever is wrong with it is a sentence."""
    try:
        main = getattr(_import(path, stage), "main", None)
        hints = {} if main is None else typing.get_type_hints(main)
    except InputError:
        raise
    except ANYTHING as error:  # a user's file
        if not stage.recipe.endswith(".py"):
            raise
        raise InputError(f"{stage.name}: recipe: {path} cannot be imported ({raised(error, str(path))})") from error
    if not dataclasses.is_dataclass(found := hints.get("config")) or not isinstance(found, type):
        raise InputError(
            f"{stage.name}: recipe: {path} must have a function main(config: MyConfig), where MyConfig is the "
            "dataclass of its options (docs/extend.md)"
        )
    return found


def _import(path: Path, stage: PlannedStage) -> ModuleType:
    """A recipe's module; light, because recipes import what is heavy inside main."""
    if not path.is_file():
        raise InputError(f"{stage.name}: there is no recipe {path}")
    spec = importlib.util.spec_from_file_location(f"rlhf_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and get_type_hints look their module up
    spec.loader.exec_module(module)
    return module
