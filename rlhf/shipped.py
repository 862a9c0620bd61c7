"""What comes with the package beside its code: recipes, their settings, and files for `accelerate launch`.

In a checkout they stand at its top, as `recipes/` and `ds_configs/`; an installed package has them inside itself.
Light: no torch.
"""

from __future__ import annotations

import ast
import difflib
import os
import shutil
from pathlib import Path
from typing import TypeVar

from rlhf.errors import InputError

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent
"""The folder that `recipes/configs/embedded/ppo.yaml` and the like are found from."""

RECIPES = ROOT / "recipes"
LAUNCH_FILES = "ds_configs"
Named = TypeVar("Named", bound=str | Path)


def shipped(path: Named) -> Named:
    """A path such as the shipped YAML files name it, `recipes/configs/…` or `ds_configs/…`, found from any folder.

    It is left as it is where it exists from here, names something else, or nothing of the kind is shipped.
    """
    found = ROOT / path
    named = str(path).startswith(("recipes/configs/", f"{LAUNCH_FILES}/"))
    return type(path)(found) if named and not os.path.exists(path) and found.exists() else path


def find_recipe(name: str, recipes: Path = RECIPES) -> Path:
    """The file of a recipe by its name, in `recipes` or in a folder there; `recipes/<name>.py` where there is none."""
    file = recipes / f"{name}.py"
    return file if file.is_file() else next((one for one in recipes.glob("*/*.py") if one.stem == name), file)


def recipe_names() -> dict[str, str]:
    """Recipe -> the first line of its docstring, those of training first, then folder by folder."""
    files = [*sorted(RECIPES.glob("*.py")), *sorted(RECIPES.glob("*/*.py"))]
    return {file.stem: _first_line(file) for file in files}


def settings() -> dict[str, Path]:
    """Name of a shipped YAML file, such as `llama2_13b/ppo` or `ds_configs/accelerate_zero3` -> the file."""
    found = {
        file.relative_to(RECIPES / "configs").with_suffix("").as_posix(): file
        for file in sorted((RECIPES / "configs").rglob("*.yaml"))
    }
    return found | {f"{LAUNCH_FILES}/{file.stem}": file for file in sorted((ROOT / LAUNCH_FILES).glob("*.yaml"))}


def listing() -> str:
    """Every recipe with what it does, then the settings of each folder."""
    names = recipe_names()
    width = max(map(len, names))
    folders: dict[str, list[str]] = {}
    for name in settings():
        folder, _, rest = name.partition("/")
        folders.setdefault(folder, []).append(rest)
    return "\n".join(
        [
            *(f"{name:<{width}}  {text}" for name, text in names.items()),
            "",
            "settings, for rlhf recipe copy FOLDER/NAME FILE:",
            *(f"{folder:<{width}}  {', '.join(found)}" for folder, found in folders.items()),
        ]
    )


def existing_recipe(name: str) -> Path:
    """The file of a recipe; InputError with the names that are nearest for another one."""
    file = find_recipe(name.removesuffix(".py"))
    if not file.is_file():
        near = difflib.get_close_matches(name.removesuffix(".py"), recipe_names(), 3)
        way_out = f"did you mean {' or '.join(near)}?" if near else "`rlhf recipe list` names all"
        raise InputError(f"recipe: there is none called {name!r}; {way_out}")
    return file


def existing_settings(name: str) -> Path:
    """The file of some settings; InputError with all names of that folder, or all folders, for another one."""
    found = settings()
    if (wanted := name.removesuffix(".yaml")) in found:
        return found[wanted]
    folder = wanted.partition("/")[0]
    near = [one for one in found if one.startswith(f"{folder}/")] or sorted({one.partition("/")[0] for one in found})
    what = "there are" if near[0] in found else "name one as folder/recipe; the folders are"
    raise InputError(f"settings: there are none called {name!r}; {what} {', '.join(near)}")


def copy_settings(name: str, target: Path) -> Path:
    """Write a shipped YAML file to `target`, a file or a folder, to be changed there; returns the file.

    Raises:
        InputError: there are no such settings, or the target exists, or its folder does not.
    """
    source = existing_settings(name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise InputError(f"target: {target} exists already; name another file")
    if not target.parent.is_dir():
        raise InputError(f"target: there is no folder {target.parent}; make it first")
    shutil.copyfile(source, target)
    return target


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
