"""What a user names, on this machine: paths that must be there, and models in the hub's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlhf.errors import InputError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A repository of the hub's: org/name."""


def require_files(**paths: str | os.PathLike[str] | None) -> None:
    """Raise InputError naming the first field whose path is missing and the command that makes it; None is skipped."""
    for field, path in paths.items():
        if path is not None and not Path(path).exists():
            raise InputError(f"{field}: {path} does not exist; {_way_out(Path(path))}")


def in_hub_cache(name: str | os.PathLike[str]) -> Path | None:
    """The folder of what `hf download NAME` fetched into the hub's cache; None: no hub name, or it is not there.

    The hub itself is not asked.
    """
    if HUB_NAME.fullmatch(os.fspath(name)) is None:
        return None
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(os.fspath(name), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def model_place(name: str | os.PathLike[str]) -> Path:
    """Where a model lies: at the path that is named, or a hub name's in the hub's cache; the path if at neither."""
    return Path(name) if Path(name).exists() else in_hub_cache(name) or Path(name)


def _way_out(path: Path) -> str:
    makers = {"demo": "`make demo` writes it", "hh": "`make demo-hh DATA=<folder>` writes it"}
    run = path.parts[1] if len(path.parts) > 1 and path.parts[0] == "runs" else ""
    if re.fullmatch(r"[A-Za-z][\w.-]*/[\w.-]*[A-Za-z0-9]", path.as_posix()) and not path.parent.exists():
        return f"name an existing one (a model of the hub is fetched first: `hf download {path} --local-dir FOLDER`)"
    return makers.get(run, "name an existing one")
