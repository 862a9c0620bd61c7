"""What a stage makes of its rows once, before its work begins, and all of its processes read. Light."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.stage.fields import options_of
from rlhf.stage.held import held
from rlhf.stage.kept import ORIGIN_FILE, Kept, clear, require_ours, write_whole
from rlhf.stage.stage import Stage


@contextmanager
def made_once(stage: Stage, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder `<output>.<name>.partial`, which the main process has filled by `make`, while the others go on.

    They wait for it where the stage's work begins, and may read it from then on. It is gone at the block's end. A block
    that is broken off leaves it, whole, and the next attempt reads it as it is if neither an input, nor an option that
    decides the stage, nor a package has changed. What `make` had not finished is gone, or made anew after a kill.

    Raises:
        InputError: `make` does, on the main process; another process is at work there, or the folder is not ours.
    """
    folder = stage.output.with_name(f"{stage.output.name}.{name}.partial")
    if not stage.is_main:
        yield folder
        return
    require_ours(folder)
    with held(folder):
        if not _is_whole(folder, stage, name):
            try:
                clear(folder, ())
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
            write_whole(folder / ORIGIN_FILE, _origin(stage, name))
        yield folder
        shutil.rmtree(folder, ignore_errors=True)  # it may be in use still, which some file systems mind


def _origin(stage: Stage, name: str) -> object:
    """All that decides what is made."""
    values, _ = options_of(stage.config, stage.inputs)
    return Kept(name, name, inputs=tuple(stage.inputs), values=values).origin(stage.digests)


def _is_whole(folder: Path, stage: Stage, name: str) -> bool:
    try:
        old = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(old == _origin(stage, name))
