"""The Llama 2 alignment pipeline as a library; see docs/index.md for the map."""

from __future__ import annotations

import os
import sys
from types import TracebackType

__version__ = "0.1.0"


def quiet_interrupts(program: str) -> None:
    """Let Ctrl-C end `rlhf` or a recipe with a word, and no traceback, also while its imports are going on.

    Args:
        program: path of what runs; of another one nothing is changed.
    """
    if os.path.basename(program) == "rlhf" or f"{os.sep}recipes{os.sep}" in os.path.abspath(program):
        sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


quiet_interrupts(sys.argv[0] if sys.argv else "")
