"""The commands of `rlhf`, a file a kind: what each may be told, and what it does, stand together.

Each file has `add_to(command)`, which `rlhf.cli` calls with the maker of a command's parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol


class Command(Protocol):
    """Makes the parser of one command, for its options."""

    def __call__(
        self, name: str, call: Callable[[argparse.Namespace], bool | None], text: str
    ) -> argparse.ArgumentParser:
        """A parser of this name; `call` does the work and says whether what it checked is well (None: no check)."""
        ...
