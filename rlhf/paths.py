"""Paths that a user names: they must be there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlhf.errors import InputError


def require_files(**paths: str | os.PathLike[str] | None) -> None:
    """Raise InputError naming the first field whose path is missing and the command that makes it; None is skipped."""
    for field, path in paths.items():
        if path is not None and not Path(path).exists():
            raise InputError(f"{field}: {path} does not exist; {_way_out(Path(path))}")


def _way_out(path: Path) -> str:
    makers = {"demo": "`make demo` writes it", "hh": "`make demo-hh DATA=<folder>` writes it"}
    run = path.parts[1] if len(path.parts) > 1 and path.parts[0] == "runs" else ""
    if re.fullmatch(r"[A-Za-z][\w.-]*/[\w.-]*[A-Za-z0-9]", path.as_posix()) and not path.parent.exists():
        return f"name an existing one (a model of the hub is fetched first: `hf download {path} --local-dir FOLDER`)"
    return makers.get(run, "name an existing one")
