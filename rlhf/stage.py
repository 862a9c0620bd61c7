"""A stage's folder: written beside its place, renamed into it when whole.

    <output>/            stage.json  metrics.jsonl  checkpoint/ …      only ever a finished stage
    <output>.partial/    the same while it is being written; a kill leaves only this behind

Recipes open their folder here, by hand and under the driver alike, so that "finished" means the same everywhere.
Imports nothing heavy: missing input is reported before torch is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf.configuration import to_dict
from rlhf.errors import InputError

STAGE_FILE = "stage.json"
ORIGIN_FILE = "origin.json"
PACKAGES = ("rlhf", "torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes")


def require_files(**paths: str | os.PathLike[str] | None) -> None:
    """Raise InputError naming the first field whose path is missing and the command that makes it; None is skipped."""
    for field, path in paths.items():
        if path is not None and not Path(path).exists():
            raise InputError(f"{field}: {path} does not exist; {_way_out(Path(path))}")


def require_new(output: str | os.PathLike[str]) -> None:
    """Raise InputError if a stage's output folder exists already: nothing finished is overwritten."""
    if Path(output).exists():
        raise InputError(
            f"output: {output} exists already; remove it to run the stage again, or name another with --output"
        )


def _way_out(path: Path) -> str:
    makers = {"demo": "`make demo` writes it", "hh": "`make demo-hh DATA=<folder>` writes it"}
    run = path.parts[1] if len(path.parts) > 1 and path.parts[0] == "runs" else ""
    if re.fullmatch(r"[A-Za-z][\w.-]*/[\w.-]*[A-Za-z0-9]", path.as_posix()) and not path.parent.exists():
        return f"name an existing one (a model of the hub is fetched first: `hf download {path} --local-dir FOLDER`)"
    return makers.get(run, "name an existing one")


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
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees either the old file or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill leaves it whole or gone (what is left over has another name)."""
    leftover = path.with_name(path.name + ".partial")
    shutil.rmtree(leftover, ignore_errors=True)
    os.replace(path, leftover)
    shutil.rmtree(leftover)


@dataclass(frozen=True)
class Kept:
    """A folder of the stage's that a broken-off attempt leaves to the next; it goes when the stage is finished.

    Args:
        name: of the folder.
        inputs: those of the stage's inputs that decide what is in it.
        values: what else decides it, plain JSON types. Another input, value or package version, and it starts empty.
        beside: files and folders of the stage that the next attempt takes over with it; these stay when it is finished.
    """

    name: str
    inputs: Sequence[str]
    values: Mapping[str, Any]
    beside: Sequence[str] = ()


@contextmanager
def open_stage(
    output: str | os.PathLike[str],
    config: Any,
    inputs: Mapping[str, str | os.PathLike[str]] | None = None,
    *,
    keep: Kept | None = None,
    is_main: bool | None = None,
) -> Iterator[Path]:
    """Yield the partial folder to write into; on a clean exit add `stage.json` and rename it to `output`.

    Every process of a multi-process recipe enters; the main one (RANK 0) makes, finishes and renames the folder.
    Processes that also write there must be past a barrier (`accelerator.wait_for_everyone()`) after entering and
    before leaving. On an exception the partial folder stays for a look and is replaced by the next attempt, but for
    what `keep` names.

    Args:
        output: the stage's final folder. If it exists already an InputError says so: nothing finished is overwritten.
        config: the recipe's dataclass, stored in stage.json.
        inputs: name -> path of what the stage reads; their digests are stored.
        keep: a folder in it that the next attempt takes over.
    """
    final = Path(output)
    partial = final.with_name(final.name + ".partial")
    require_new(final)
    if not (is_main if is_main is not None else os.environ.get("RANK", "0") == "0"):
        yield partial
        return
    started = time.time()
    digests = {name: {"path": os.fspath(path), "digest": digest(path)} for name, path in (inputs or {}).items()}
    _clear(partial, keep, {name: entry["digest"] for name, entry in digests.items()})
    yield partial
    if keep is not None:
        remove_folder(partial / keep.name)
    record = {
        "command": [Path(sys.executable).name, *sys.argv],
        "config": to_dict(config),
        "inputs": digests,
        "seconds": round(time.time() - started, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "packages": package_versions(),
    }
    write_json(partial / STAGE_FILE, record)
    os.replace(partial, final)


def _clear(partial: Path, keep: Kept | None, digests: Mapping[str, str]) -> None:
    """Make the partial folder, empty but for the kept folder where that has the same origin."""
    if keep is None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return
    known = {name: digests[name] for name in keep.inputs}
    origin = json.dumps({"inputs": known, "values": keep.values, "packages": package_versions()}, sort_keys=True)
    file = partial / keep.name / ORIGIN_FILE
    if not file.is_file() or file.read_text(encoding="utf-8") != origin:
        shutil.rmtree(partial, ignore_errors=True)
        file.parent.mkdir(parents=True)
        file.write_text(origin, encoding="utf-8")
    for path in partial.iterdir():
        if path.name not in (keep.name, *keep.beside):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
