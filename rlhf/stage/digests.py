"""Digests of a run's files and of what it reads, each read once: what a finished stage wrote is what the next reads.

Reading a large checkpoint takes as long as its disk and SHA-256 need (about 1.5 GB a second on a core), so a start of
the driver reads a file again only where its size, its times or its inode say that it may be another one. Changes that
leave all these as they were (a bit that the disk flipped) are found where `read` is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.jsonl import read_json
from rlhf.stage.files import digest, write_json

Signature = list[list[Any]]


class FileDigests:
    """Digests of files and folders, those of a run and those that it reads from outside.

    Args:
        run: the run's folder.
        kept: file in it where `save` keeps what is known; a broken or missing one costs time and nothing else.
    """

    def __init__(self, run: Path, kept: str = ".digests.json") -> None:
        self.run = run.resolve()
        self._kept = run / kept
        self._read: set[Path] = set()
        try:
            self._known: dict[str, tuple[Signature, str]] = dict(read_json(self._kept))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of(self, path: Path, *, read: bool = False) -> str:
        """`rlhf.stage.digest`; with `read` contents are read, once in this object's life, whatever is known of them."""
        name, signature = self._name(path), signature_of(path)
        known: Any = self._known.get(name)
        if known is None or known[0] != signature or (read and path not in self._read):
            self._known[name] = known = (signature, digest(path))
            self._read.add(path)
        found: str = known[1]
        return found

    def learn(self, path: Path, found: str, signature: Signature) -> None:
        """Take over a digest that somebody else found while the file or folder had this signature, before and after."""
        self._known[self._name(path)] = (signature, found)

    def _name(self, path: Path) -> str:
        path = path.resolve()
        return str(path.relative_to(self.run) if path.is_relative_to(self.run) else path)

    def of_folder(self, folder: Path, *, read: bool = False) -> dict[str, str]:
        """Digest of every file below a folder, by its path there."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(file.relative_to(folder)): self.of(file, read=read) for file in files}

    def save(self) -> None:
        """Keep what is known for the next object of this run."""
        write_json(self._kept, self._known)


def signature_of(path: Path) -> Signature:
    """What changes when a file is written, moved or replaced: of the file, or of every file below the folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    status = [(str(file.relative_to(path)), file.stat()) for file in files]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in status]


def changes(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What became of files, in words: first those that are missing or changed, then those that nobody wrote."""
    gone = [name for name in recorded if found.get(name) != recorded[name]]
    lost = [f"{name} is {'changed' if name in found else 'missing'}" for name in gone]
    return lost + [f"{name} is added" for name in found if name not in recorded]
