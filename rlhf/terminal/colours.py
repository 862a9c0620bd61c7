"""Colours where somebody looks at a terminal, and nothing but text everywhere else."""

from __future__ import annotations

import os
import re
from typing import TextIO

RED, GREEN, YELLOW = "31", "32", "33"
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def coloured(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and NO_COLOR (no-color.org) does not forbid them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, where the stream shows it."""
    return f"\x1b[{colour}m{text}\x1b[0m" if coloured(stream) else text


def disarmed(text: str) -> str:
    """A text of somebody else's, where what a terminal would obey is shown by its number; lines and tabs stay."""
    return _OBEYED.sub(lambda found: f"\\x{ord(found.group()):02x}", text)
