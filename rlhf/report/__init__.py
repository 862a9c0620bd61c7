"""Pages from files: `run`, one HTML page of a run; `pages`, those of single recipes; `drawing`, what all are made of.

Another panel of a run is a function in `run` and a line in its `build.py`; another recipe's page is a file in `pages`.
"""

from __future__ import annotations

from pathlib import Path


def build_report(run: Path) -> Path:
    """Write `report/index.html` of what there is of a run and return its path; see `rlhf.report.run.build`.

    Raises:
        InputError: there is no such folder, or none of a run's files in it.
    """
    from rlhf.report.run.build import build

    return build(run)


__all__ = ["build_report"]
