"""Whether this process keeps to warnings, errors and results (`--quiet`). Light."""

from __future__ import annotations

import os
import sys

_quiet = False


def be_quiet(quiet: bool) -> None:
    """No bars and no notes from now on; or, with False, again some."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """What `be_quiet` was told last."""
    return _quiet


def note(text: str) -> None:
    """A line on stderr that is neither a warning nor a result, by the main process; none where it is to be quiet."""
    if not _quiet and os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)
