"""The one exception that means "your input needs a change": shown as a single sentence, never as a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input by the user. The message is one sentence: the file and line or field, the value, the way out."""
