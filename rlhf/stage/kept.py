"""What of a broken-off attempt the next one takes over, and when it may: never deleted in silence.

    <output>.partial/attempt.json            made by this library: by which command
    <output>.partial/<kind>/origin.json      what decides the work that is kept there
    <output>.partial/<kind>/…                the work: drawn answers, training states

A kind goes on where nothing that decides it has changed. What changes a result by rounding alone is said, and it goes
on. Anything else is refused in one sentence that names the option, unless `--fresh true` drops what does not fit.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.stage.files import STAGE_FILE, package_versions
from rlhf.terminal import note

ATTEMPT_FILE = "attempt.json"
ORIGIN_FILE = "origin.json"
UNSET = "not set"


@dataclass(frozen=True)
class Kept:
    """One kind of work, in a folder of the stage's that a broken-off attempt leaves; gone once the stage is finished.

    Args:
        name: of the folder.
        what: it is, in words for the user: "training states".
        inputs: those of the stage's inputs that decide what is in it.
        values: what else decides it: name of the option -> plain JSON value.
        rounding: those names of `values` that change it by rounding alone.
        beside: files and folders of the stage that the next attempt takes over with it; these stay when it is finished.
        pattern: what in the folder is work (the rest may be dropped without a word).
    """

    name: str
    what: str
    inputs: Collection[str]
    values: Mapping[str, Any]
    rounding: Collection[str] = ()
    beside: Sequence[str] = ()
    pattern: str = "*"

    def origin(self, digests: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """All that decides it, as `origin.json` has it."""
        found = {
            "inputs": {name: digests[name] for name in self.inputs},
            "values": self.values,
            "packages": package_versions(),
        }
        plain: dict[str, dict[str, Any]] = json.loads(json.dumps(found))
        return plain

    def is_there(self, partial: Path) -> bool:
        """Whether an attempt left any work of this kind."""
        found = (path for path in (partial / self.name).glob(self.pattern) if not path.name.endswith(".partial"))
        return any(path.name != ORIGIN_FILE and (path.is_dir() or path.stat().st_size > 0) for path in found)


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was: an option, an input (its content), a package."""

    name: str
    old: Any
    new: Any
    part: str

    def __str__(self) -> str:
        if self.part == "inputs":
            return f"{self.name} has another content"
        return f"{self.name} was {_shown(self.old)}, now {_shown(self.new)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def changes(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """What differs between two origins: options first, then inputs, then packages.

    An option that is null and one that was not there, as before an upgrade, are the same.
    """
    found = []
    for part in ("values", "inputs", "packages"):
        before, after = old.get(part, {}), new.get(part, {})
        for name in dict.fromkeys((*after, *before)):
            if before.get(name) != after.get(name):
                found.append(Change(name, before.get(name, UNSET), after.get(name, UNSET), part))
    return found


def take_over(partial: Path, kinds: Sequence[Kept], digests: Mapping[str, str], *, fresh: bool) -> list[str]:
    """Leave in the partial folder the kinds that go on, and nothing else; returns what is to be said of them.

    Raises:
        InputError: the folder is not ours, or work there was made in another way and `fresh` is not asked for; nothing
            has been changed then.
    """
    require_ours(partial)
    said, dropped = [], set()
    for kind in kinds:
        found = _changes_of(kind, partial, digests)
        decisive = [c for c in found if not (c.part == "packages" or (c.part == "values" and c.name in kind.rounding))]
        if decisive and kind.is_there(partial) and not fresh:
            raise InputError(_refusal(kind, decisive[0], partial / kind.name))
        if decisive:
            dropped.add(kind.name)
            if kind.is_there(partial):
                said.append(f"the {kind.what} in {partial / kind.name} are dropped: {decisive[0]}")
        elif found and kind.is_there(partial):
            said.append(
                f"goes on with the {kind.what} in {partial / kind.name}; {', '.join(map(str, found))}: the result is "
                "the same up to rounding, no longer bit for bit"
            )
    known = {kind.name for kind in kinds}
    for file in sorted(partial.glob(f"*/{ORIGIN_FILE}")) if not fresh else []:
        if file.parent.name not in known and any(path != file for path in file.parent.iterdir()):
            raise InputError(
                f"output: {file.parent} holds work of another recipe's; remove {partial}, or name another --output"
            )
    clear(partial, [kind for kind in kinds if kind.name not in dropped])
    for kind in kinds:
        (partial / kind.name).mkdir(exist_ok=True)
        write_whole(partial / kind.name / ORIGIN_FILE, kind.origin(digests))
    for sentence in said:
        note(f"{partial.name.removesuffix('.partial')}: {sentence}")
    return said


def _changes_of(kind: Kept, partial: Path, digests: Mapping[str, str]) -> list[Change]:
    file = partial / kind.name / ORIGIN_FILE
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(old.get(part, {}), dict) for part in ("values", "inputs", "packages")):
            raise ValueError("it is no origin")
    except (OSError, ValueError, AttributeError, RecursionError):
        return [Change(ORIGIN_FILE, "one that cannot be read", "to be written", "values")]
    return changes(old, kind.origin(digests))


def _refusal(kind: Kept, change: Change, folder: Path) -> str:
    way_out = f"go on with it as it was, or drop them with --fresh true ({folder})"
    if change.part == "inputs":
        return f"{change.name}: it is not what the {kind.what} kept from a broken-off attempt were made with; {way_out}"
    return (
        f"{change.name}: the {kind.what} kept from a broken-off attempt were made with {_shown(change.old)}, now it is "
        f"{_shown(change.new)}; {way_out}"
    )


def require_ours(partial: Path) -> None:
    """InputError where the partial folder is a link, or was not made by this library: it is not ours to empty."""
    if partial.is_symlink():
        raise InputError(f"output: {partial} is a link, which is not followed to empty a folder; remove it")
    if partial.exists() and not partial.is_dir():
        raise InputError(f"output: {partial} is a file; the stage is written there first: move it away")
    names = {path.name for path in partial.iterdir()} if partial.is_dir() else set()
    if names - {f"{ATTEMPT_FILE}.partial"} and not names & {ATTEMPT_FILE, STAGE_FILE}:
        raise InputError(
            f"output: {partial} was not made by this stage (it has no {ATTEMPT_FILE}), so it is not emptied; "
            "move it away, or name another --output"
        )


def clear(partial: Path, going_on: Sequence[Kept]) -> None:
    """Make the folder ours, and empty but for the kinds that go on and what lies beside them."""
    left = {ATTEMPT_FILE, *(kind.name for kind in going_on), *(name for kind in going_on for name in kind.beside)}
    partial.mkdir(parents=True, exist_ok=True)
    write_whole(partial / ATTEMPT_FILE, {"command": [Path(sys.executable).name, *sys.argv]})
    for path in partial.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_whole(file: Path, content: Any) -> None:
    """Whole or not at all, without leaving a name that would be taken for work."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(file)
