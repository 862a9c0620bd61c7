"""What a YAML file may hold that no reader of it complains about: the same key twice, aliases that grow without end."""

from __future__ import annotations

from pathlib import Path

import yaml

from rlhf.errors import InputError

MOST_NODES = 100_000
"""Values that a config may stand for once its aliases are written out."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where it is there: it reads the same, several times as fast."""


def require_plain_yaml(file: Path) -> None:
    """InputError, with the line, where a mapping has a key twice (the last would win), or aliases stand for too much.

    A file that cannot be read, or is no YAML, is left to its reader to tell.
    """
    try:
        if file.exists() and not (file.is_file() or file.is_dir() or file.is_char_device()):
            raise InputError(f"config: {file} is a pipe or a socket, which could be read once only; name a file")
        root = yaml.compose(file.read_text(encoding="utf-8"), LOADER)
    except InputError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return
    try:
        size = 0 if root is None else _size(root, file, {})
    except RecursionError:
        raise InputError(f"{file}: it is nested too deeply; no option goes that deep") from None
    if size > MOST_NODES:
        raise InputError(f"{file}: its aliases stand for more than {MOST_NODES} values; write out what is meant")


def _size(node: yaml.Node, file: Path, known: dict[int, int]) -> int:
    """How many values a node stands for; an alias counts as often as it is used, and is gone into once."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 1  # of itself, should it hold itself
    size = 1
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    raise InputError(f"{file}:{key.start_mark.line + 1}: {key.value} is given twice; leave one out")
                keys.add(key.value)
            size += _size(value, file, known)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(value, file, known) for value in node.value)
    known[id(node)] = size
    return size
