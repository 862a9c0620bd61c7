"""The exceptions that mean "this needs you": shown as a single sentence, never as a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input by the user. The message is one sentence: the file and line or field, the value, the way out."""

    exit_code = 2


class SuspiciousError(InputError):
    """A stage asked for with `--strict true` did its work, and something about it looks wrong."""

    exit_code = 3
