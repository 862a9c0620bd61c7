"""Pages from files: `run`, one HTML page of a run; `pages`, those of single recipes; `drawing`, what all are made of.

Another panel of a run is a function in `run` and a line in its `build.py`, or a user's own, by import path; another
recipe's page is a file in `pages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def build_report(*paths: Path, panels: Sequence[str] = ()) -> Path:
    """Write the page of what there is of a run, or of stages made by hand, and return its path.

    Args:
        paths: a run's folder, whose page is its report/index.html; or several runs' or stages' folders, whose page lies
            beside the first one, in <its name>.report/, of several in <its name>_and_<the others'>.report/.
        panels: import paths of panels of one's own (`rlhf.report.run.own.PanelMaker`), after those that the run's
            config names.

    Raises:
        InputError: there is no such folder, or none of a run's files in it, or a panel cannot be made.
    """
    from rlhf.report.run.build import build

    return build(*paths, panels=panels)


__all__ = ["build_report"]
