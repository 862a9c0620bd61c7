"""Each case in a folder of its own, and how its call ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from case import Case
from forked import Ended, run_forked
from world import copy_world


def answered(cases: Iterable[Case], world: Path, here: Path) -> Iterator[tuple[Case, Ended]]:
    """Every case with how it ended, as they end.

    Args:
        world: of `world.make_world`.
        here: folder for the cases' own.
    """
    for number, case in enumerate(cases):
        folder = copy_world(world, here / str(number), with_run=any("run" in word for word in case.words))
        if case.prepare is not None:
            case.prepare(folder)
        yield (
            case,
            run_forked(case.words, folder, obeys_modes=case.obeys_modes, first=case.first),
        )
        for place in folder.glob("*"):
            if place.is_dir() and not place.is_symlink():
                place.chmod(0o777)
        shutil.rmtree(folder)
