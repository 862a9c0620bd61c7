"""Colours where somebody looks at a terminal, and nothing but text everywhere else."""

from __future__ import annotations

import os
from typing import TextIO

RED, GREEN, YELLOW = "31", "32", "33"


def coloured(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and NO_COLOR (no-color.org) does not forbid them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, where the stream shows it."""
    return f"\x1b[{colour}m{text}\x1b[0m" if coloured(stream) else text
