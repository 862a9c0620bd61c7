"""Where a page's files lie: the stages in a run's folder, or stage folders that somebody made by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import InputError

STAGE_FILE = "stage.json"
RUN_FILES = ("summary.json", "ledger.jsonl")
"""A run's folder has one of them."""


LONGEST_NAME = 120
"""Letters that a page's folder is called by before it says how many folders the page is of."""


def beside(paths: Sequence[Path]) -> Path:
    """The folder of a page of several runs or of stages: beside the first one, which nothing changes.

    It is called after all of them, so that no other folders' page lies there.
    """
    first, *others = (path.resolve() for path in paths)
    names = [path.name if path.parent == first.parent else f"{path.name}-{_digest([path])}" for path in others]
    name = "_and_".join([first.name, *names])
    if others and len(name) > LONGEST_NAME:
        name = f"{first.name[:LONGEST_NAME]}_and_{len(others)}_more-{_digest([first, *others])}"
    return first.with_name(f"{name}.report")


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256("\0".join(map(str, paths)).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def names_of(paths: Sequence[Path]) -> list[str]:
    """What a page calls each folder: its name, or as much of its path as tells it from the others.

    Raises:
        InputError: one is there twice.
    """
    whole = [path.resolve() for path in paths]
    if twice := [path for path in whole if whole.count(path) > 1]:
        raise InputError(f"run: {twice[0]} is named twice; name each one once")
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            break
    return names


@dataclass(frozen=True)
class Folders:
    """A run's folder, in which stages lie one or two deep, or the folders of single stages.

    Args:
        run: of the run; of stages made by hand the place of their page.
        stages: folders of stages made by hand; none: those in the run.
    """

    run: Path
    stages: tuple[Path, ...] = ()

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Folders:
        """What the user named: one run, or one stage or several.

        Raises:
            InputError: something is no folder, a folder of runs or one in a run, or a run stands beside others.
        """
        for path in paths:
            if not path.is_dir():
                what = "is a file" if path.is_file() else "does not exist"
                raise InputError(f"run: {path} {what}; name the folder of a run, e.g. runs/demo, or of stages")
        if len(paths) == 1 and not (paths[0] / STAGE_FILE).is_file():
            _require_run(paths[0])
            return cls(paths[0])
        for path in paths:
            if not (path / STAGE_FILE).is_file():
                raise InputError(
                    f"run: {path} has no {STAGE_FILE}, so it is no finished stage; name runs alone, or stages alone"
                )
        names_of(paths)
        return cls(beside(paths), tuple(paths))

    @staticmethod
    def are_runs(paths: Sequence[Path]) -> bool:
        """Whether these are several runs, none of them a single stage."""
        return len(paths) > 1 and all(path.is_dir() and not (path / STAGE_FILE).is_file() for path in paths)

    @property
    def page(self) -> Path:
        """The page's file: in the run's folder; of stages, whose folders nothing changes, beside the first one."""
        return (self.run if self.stages else self.run / "report") / "index.html"

    @property
    def title(self) -> str:
        """Of the page."""
        return ", ".join(names_of(self.stages or (self.run,)))

    def files(self, name: str) -> list[Path]:
        """Files of that name in finished stages' folders: those of a run in the order of the folders' names."""
        if self.stages:
            return [file for stage in self.stages if (file := stage / name).is_file()]
        found = [*self.run.glob(f"*/{name}"), *self.run.glob(f"*/*/{name}")]
        return sorted(
            path for path in found if not any(part.endswith(".partial") for part in path.relative_to(self.run).parts)
        )

    def unfinished(self, name: str) -> list[Path]:
        """The same in the folders that a run's stages are at work in, or were when they were stopped."""
        return sorted([*self.run.glob(f"*.partial/{name}"), *self.run.glob(f"*/*.partial/{name}")])

    def name_of(self, file: Path) -> str:
        """The name of the stage that a file lies in."""
        if self.stages:
            return names_of(self.stages)[self.stages.index(file.parent)]
        return file.parent.relative_to(self.run).as_posix().removesuffix(".partial")

    def version_of(self, file: Path) -> str:
        """The version that a file belongs to."""
        name = self.name_of(file)
        return name if self.stages else name.split("/")[0]


def _require_run(path: Path) -> None:
    """InputError where the folder is one of runs, or a version's in a run: what is in it makes no page of its own."""
    if _is_run(path):
        return
    if _is_run(path.resolve().parent):
        raise InputError(f"run: {path} is a part of the run {path.resolve().parent}; name that")
    if runs := sorted(str(folder) for folder in path.glob("*") if _is_run(folder)):
        raise InputError(f"run: {path} is a folder of runs; name one of them or several: {', '.join(runs)}")


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)
