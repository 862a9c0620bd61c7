"""Where a page's files lie: the stages in a run's folder, or stage folders that somebody made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import InputError

STAGE_FILE = "stage.json"


def beside(path: Path) -> Path:
    """The folder of a page of several runs or of stages: beside the first one, which nothing changes."""
    first = path.resolve()
    return first.with_name(f"{first.name}.report")


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
            InputError: something is no folder, or a run stands beside others.
        """
        for path in paths:
            if not path.is_dir():
                raise InputError(f"run: {path} does not exist; name the folder of a run, e.g. runs/demo, or of stages")
        if len(paths) == 1 and not (paths[0] / STAGE_FILE).is_file():
            return cls(paths[0])
        for path in paths:
            if not (path / STAGE_FILE).is_file():
                raise InputError(
                    f"run: {path} has no {STAGE_FILE}, so it is no finished stage; name runs alone, or stages alone"
                )
        return cls(beside(paths[0]), tuple(paths))

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
        return ", ".join(path.resolve().name for path in self.stages or (self.run,))

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
        folder = file.parent.resolve().name if self.stages else file.parent.relative_to(self.run).as_posix()
        return folder.removesuffix(".partial")

    def version_of(self, file: Path) -> str:
        """The version that a file belongs to."""
        return self.name_of(file).split("/")[0]
