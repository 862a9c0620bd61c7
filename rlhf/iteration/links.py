"""Files of a run that stand in several of its folders: hard links, copies where there are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from rlhf.errors import InputError
from rlhf.iteration.plan import PlannedStage


def make_links(stage: PlannedStage) -> None:
    """The stage's links, alone in their folders: what an earlier plan linked there is no input of this one.

    Raises InputError where one of these folders holds what the run did not put there.
    """
    for folder in {link.parent for link, _ in stage.links}:
        if foreign := clear_links(folder, {link.name for link, _ in stage.links}):
            raise InputError(
                f"run: {foreign[0]} was not put there by the run, which reads all of {folder}; move it away"
            )
    for link, target in stage.links:
        make_link(link, target)


def clear_links(folder: Path, names: Collection[str]) -> list[Path]:
    """Remove the hard links in a folder, and the copies of these names that may stand in for them; returns the rest."""
    foreign = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and not path.is_symlink() and (path.stat().st_nlink > 1 or path.name in names):
            path.unlink()
        else:
            foreign.append(path)
    return foreign


def make_link(link: Path, target: Path) -> None:
    """Hard link to a file, replacing what was there; a copy where the file system has no links."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError:
        shutil.copyfile(target, link)
