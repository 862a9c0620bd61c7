"""One HTML page from a run's files."""

from __future__ import annotations

from pathlib import Path


def build_report(run: Path) -> Path:
    """Write `report/index.html` of what there is of a run and return its path; see `rlhf.report.build`.

    Raises:
        InputError: there is no such folder, or none of a run's files in it.
    """
    from rlhf.report.build import build

    return build(run)


__all__ = ["build_report"]
