"""What a user names, on this machine: paths that must be there, and models in the hub's cache."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from rlhf.errors import InputError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A repository of the hub's: org/name."""


class NamesModel:
    """In `Annotated` of a config's field: it names a model, by its path or by its name on the hub.

    Where `hf download` fetched that model, its folder in the cache takes the name's place when the config is read
    (`rlhf.configuration`). A check of a checkpoint is one of these.
    """


def rlhf_command() -> str:
    """`rlhf`, as it is called from where the user stands: by its path where its environment is not an active one."""
    beside = Path(sys.executable).with_name("rlhf")
    return "rlhf" if shutil.which("rlhf") or not beside.is_file() else from_here(str(beside))


def from_here(path: str) -> str:
    """A path below the folder that the user stands in, without that folder; another as it is."""
    return path.removeprefix(f"{Path.cwd()}{os.sep}")


def require_files(**paths: str | os.PathLike[str] | None) -> None:
    """Raise InputError naming the first field whose path is missing and the command that makes it; None is skipped."""
    for field, path in paths.items():
        if path is not None and not Path(path).exists():
            raise InputError(f"{field}: {path} does not exist; {_way_out(Path(path))}")


def why_no_file(path: Path) -> str:
    """What is wrong with a path that is no file, behind its name in a sentence."""
    return "is a folder" if path.is_dir() else "does not exist"


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
    found = None if HUB_NAME.fullmatch(os.fspath(name)) is None or os.path.exists(name) else in_hub_cache(name)
    return found or Path(name)


def _way_out(path: Path) -> str:
    makers = {"demo": "`make demo` writes it", "hh": "`make demo-hh DATA=<folder>` writes it"}
    run = path.parts[1] if len(path.parts) > 1 and path.parts[0] == "runs" else ""
    if HUB_NAME.fullmatch(path.as_posix()) and not path.parent.exists():
        return f"name an existing one, or fetch a model of the hub by `hf download {path}`, then give the command again"
    return makers.get(run, "name an existing one")
