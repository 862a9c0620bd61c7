"""The exceptions that mean "this needs you": shown as a single sentence, never as a traceback."""

from __future__ import annotations

import reprlib
from typing import Any


class InputError(ValueError):
    """Bad input by the user. The message is one sentence: the file and line or field, the value, the way out."""

    exit_code = 2


class SuspiciousError(InputError):
    """A stage asked for with `--strict true` did its work, and something about it looks wrong."""

    exit_code = 3


_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = _QUOTED.maxlong = 60
_QUOTED.maxdict = _QUOTED.maxlist = _QUOTED.maxtuple = 3
_QUOTED.maxlevel = 3


def quoted(value: Any) -> str:
    """A value for a sentence: its repr, at most 60 characters; of a huge or deeply nested one only what is shown."""
    text = _QUOTED.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
