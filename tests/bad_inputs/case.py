"""What a bad input is: a call, and what is wrong around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One call with one thing wrong.

    kind: of bad input, a row of the table. name: of the case in it. words: of the call. prepare: what is done to the
    case's folder first. accepted: why it may be taken as it is; "" where it may not. obeys_modes, first: of
    `forked.run_forked`.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    prepare: Callable[[Path], object] | None = None
    accepted: str = ""
    obeys_modes: bool = False
    first: Callable[[], object] | None = None
