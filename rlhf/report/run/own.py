"""Panels of a user's own, named by import path in the run's config (`panels`) or by `rlhf report RUN --panel PATH`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlhf.errors import InputError
from rlhf.imports import import_object, own_code
from rlhf.report.drawing.figures import Panel
from rlhf.report.run.reading import RunFiles


class PanelMaker(Protocol):
    """From a run's files to figures of its report."""

    def __call__(self, files: RunFiles) -> Sequence[Panel | None]:
        """The panels (`rlhf.report.drawing.figures.lines` and its like make them); None for what was not measured."""
        ...


def own_panels(files: RunFiles, paths: Sequence[str]) -> list[Panel]:
    """The panels of every import path that the run's config or `paths` names, each path once, in this order.

    Raises:
        InputError: one cannot be imported, fails, or gives something else than panels.
    """
    config = files.settings.get("config")
    named = config.get("panels") or [] if isinstance(config, dict) else []
    found: list[Panel] = []
    for path in dict.fromkeys([*named, *paths]):
        make = import_object("panels", path)
        with own_code("panels", path):
            made = [panel for panel in make(files) if panel is not None]
        if not all(isinstance(panel, Panel) for panel in made):
            raise InputError(f"panels: {path} must give a list of rlhf.report.drawing.figures.Panel, or None for none")
        found += made
    return found
