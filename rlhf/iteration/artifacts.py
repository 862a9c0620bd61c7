"""What the steps of a run hand to each other, and what the user gives it: files and folders by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.data.loading import is_local, untagged
from rlhf.paths import model_place

CHECKPOINTS = ("policy", "base", "students")
"""Inputs of a run that are models, by folder or hub name."""
REWARDS = ("helpfulness", "safety", "referee")
"""Those that are a reward model's folder, an ensemble's file or an import path."""


@dataclass(frozen=True)
class Artifact:
    """A file or folder, and the version whose step made it.

    What the user gave may also be a plain text; `listed` says that it is one of several that are no sequence in time,
    and `tags` are what stands behind the path of its rows and says more of them (`#safety`).
    """

    place: Path | str
    version: str = ""
    listed: bool = False
    tags: str = ""

    @property
    def text(self) -> str:
        """As an option takes it."""
        return f"{self.place}{self.tags}"

    def of_version(self, version: str) -> Artifact:
        """The artifact as a version reads it: the placeholder in its name is filled in."""
        if not isinstance(self.place, Path):
            return self
        return replace(self, place=Path(str(self.place).replace("{version}", version)))


def given_artifacts(name: str, sources: str | Sequence[str]) -> list[Artifact]:
    """What the user gave under a name."""
    listed = [sources] if isinstance(sources, str) else sources
    return [replace(_given(name, source), listed=len(listed) > 1) for source in listed]


def _given(name: str, source: str) -> Artifact:
    """A path where it is a file or folder, else the text as it is: rows of the hub's or an import path.

    A model is a path in any case: of the hub's, that in its cache.
    """
    if name in CHECKPOINTS or (name in REWARDS and ":" not in source):
        return Artifact(model_place(source))
    if not is_local(source):
        return Artifact(source)
    return Artifact(Path(untagged(source)), tags=source.removeprefix(untagged(source)))
