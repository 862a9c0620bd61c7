"""The commands of `rlhf`, a file a kind: what each may be told, and what it does, stand together.

Each file has `add_to(command)`, which `rlhf.cli` calls with the maker of a command's parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol


class Command(Protocol):
    """Makes the parser of one command, for its options."""

    def __call__(
        self, name: str, call: Callable[[argparse.Namespace], bool | None], text: str
    ) -> argparse.ArgumentParser:
        """A parser of this name; `call` does the work and says whether what it checked is well (None: no check)."""
        ...


def add_template_kwargs(parser: argparse.ArgumentParser | argparse._ArgumentGroup, whose: str) -> None:
    """Add the option `chat_template_kwargs` that every recipe has; `whose` templates, in its help."""
    parser.add_argument(
        "--chat-template-kwargs",
        "--chat_template_kwargs",  # as recipes spell it
        type=_mapping,
        default={},
        metavar="{NAME: VALUE}",
        help=f"variables of {whose}, e.g. '{{enable_thinking: false}}'",
    )


def _mapping(text: str) -> dict[str, Any]:
    """A mapping in YAML's words, on one line."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"must be names with values, e.g. '{{enable_thinking: false}}', got {text!r}")
    return found
