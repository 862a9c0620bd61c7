"""Files of a stage: what must not be there yet, digests, and writes that a kill cannot halve. Light."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf.errors import InputError

STAGE_FILE = "stage.json"
PACKAGES = ("rlhf", "torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes")


def require_new(output: str | os.PathLike[str]) -> None:
    """Raise InputError if a stage's output folder exists already: nothing finished is overwritten. It needs a name."""
    if not Path(output).name:
        raise InputError(f"output: must name a folder of its own, got {os.fspath(output)!r}")
    if Path(output).exists():
        raise InputError(
            f"output: {output} exists already; remove it to run the stage again, or name another with --output"
        )


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, or of a folder's file names and contents in sorted order; 16 hex digits."""
    hasher = hashlib.sha256()
    root = Path(path)
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        hasher.update(str(file.relative_to(root)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                hasher.update(block)
    return hasher.hexdigest()[:16]


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found: dict[str, str] = {}
    for name in PACKAGES:  # reading what is installed at all would take a fifth of a second
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees either the old file or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill leaves it whole or gone: what is left over is hidden, and goes the next time.

    A link is removed, and what it points to stands.
    """
    leftover = path.with_name(f".{path.name}.removed")
    _remove(leftover)
    os.replace(path, leftover)
    _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
