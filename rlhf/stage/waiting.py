"""What a stage says while it waits for somebody outside: its driver passes it on. Light."""

from __future__ import annotations

import sys

WAITS = "waits for "


def say_waiting(what: str) -> None:
    """One line on standard error, now: "waits for " and `what`, e.g. who, where, and how far they are."""
    print(f"{WAITS}{what}", file=sys.stderr, flush=True)
