"""What somebody at a terminal sees: colours where it shows them, and less where less was asked for. Light."""

from __future__ import annotations

from rlhf.terminal.colours import GREEN, RED, YELLOW, coloured, disarmed, painted
from rlhf.terminal.quiet import be_quiet, is_quiet, note

__all__ = ["GREEN", "RED", "YELLOW", "be_quiet", "coloured", "disarmed", "is_quiet", "note", "painted"]
