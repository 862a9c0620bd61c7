"""`rlhf recipe list | run | copy | path`: the recipes and settings that come with the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf.commands import Command
from rlhf.shipped import listing


def add_to(command: Command) -> None:
    """Add the commands."""
    added = command("recipe", lambda a: a.call(a), "the recipes and settings that come with the package")
    actions = added.add_subparsers(required=True, metavar="list | run | copy | path")

    def action(name: str, call: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        one.set_defaults(call=call)
        return one

    action("list", lambda a: print(listing()), "the recipes, and the settings that come with them")
    added = action("run", lambda a: run_recipe_file(a.name, a.options), "run a recipe; what follows its name is for it")
    added.add_argument("name", help="e.g. ppo; `rlhf recipe run ppo --help` has its options")
    added.add_argument("options", nargs=argparse.REMAINDER, help="of the recipe: --config FILE --name value")
    added = action("copy", lambda a: copy_settings(a.name, a.target), "copy a settings file, to change it")
    added.add_argument("name", help="e.g. llama2_13b/ppo, ds_configs/accelerate_zero3")
    added.add_argument("target", type=Path, help="file to write, or a folder")
    added = action(
        "path",
        lambda a: print_path(a.name),
        "where a recipe or a settings file lies: accelerate launch $(rlhf recipe path ppo) --config my_ppo.yaml",
    )
    added.add_argument("name", help="of a recipe, or of settings as for copy")


def run_recipe_file(name: str, options: Sequence[str]) -> None:
    """Become `python <the recipe's file> <options>`: the same process, so that a launcher's signals reach it."""
    from rlhf.shipped import existing_recipe

    file = existing_recipe(name)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(file), *options])


def copy_settings(name: str, target: Path) -> None:
    """Copy a settings file; it opens with what it needs and the line that launches it."""
    from rlhf import shipped

    file = shipped.copy_settings(name, target)
    print(f"{file}: its first lines say what it needs and how it is launched; change the rest")


def print_path(name: str) -> None:
    """Print the file of a recipe or of settings."""
    from rlhf.shipped import existing_recipe, existing_settings

    print(existing_settings(name) if "/" in name else existing_recipe(name))
