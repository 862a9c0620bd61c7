"""What a YAML file may hold that its readers pass over or stumble on: a key twice, aliases without end, odd tags."""

from __future__ import annotations

from pathlib import Path

import yaml

from rlhf.errors import InputError

MOST_NODES = 100_000
"""Values that a config may stand for once its aliases are written out."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where it is there: it reads the same, several times as fast."""
_RESOLVER = yaml.resolver.Resolver()
_TEXT, _GROUP, _LIST, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq", "timestamp"))


def require_plain_yaml(file: Path) -> None:
    """InputError, with the line, where a mapping has a key twice (the last would win), a value has a tag that makes
    something else of it than a text, a number, yes or no, a list or a mapping, or aliases stand for too much.

    A file that cannot be read, or is no YAML, is left to its reader to tell.
    """
    try:
        if file.exists() and not (file.is_file() or file.is_dir() or file.is_char_device()):
            raise InputError(f"config: {file} is a pipe or a socket, which could be read once only; name a file")
        root = yaml.compose(file.read_text(encoding="utf-8"), LOADER)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"config: {file} is not UTF-8 ({error.reason} at byte {error.start}); save it so") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return
    _require_plain(root, file)


def require_plain_text(text: str, option: str) -> None:
    """The same of a text that an option was given; one that is no YAML is left to its reader, too."""
    try:
        root = yaml.compose(text, LOADER)
    except (ValueError, yaml.YAMLError, RecursionError):
        return
    _require_plain(root, option)


def _require_plain(root: yaml.Node | None, source: Path | str) -> None:
    try:
        size = 0 if root is None else _size(root, source, {})
    except RecursionError:
        raise InputError(f"{source}: it is nested too deeply; no option goes that deep") from None
    if size > MOST_NODES:
        raise InputError(f"{source}: its aliases stand for more than {MOST_NODES} values; write out what is meant")


def _size(node: yaml.Node, source: Path | str, known: dict[int, int]) -> int:
    """How many values a node stands for; an alias counts as often as it is used, and is gone into once."""
    place = _place_of(node, source)
    if id(node) in known:
        if not known[id(node)]:
            raise InputError(
                f"{place}: an alias stands in what it stands for, which has no end; write out what is meant"
            )
        return known[id(node)]
    known[id(node)] = 0  # as long as it is gone into
    size = 1
    if node.tag != _untagged(node):
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise InputError(f"{place}: tags are not read, got {tag}; write the value without it")
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    raise InputError(f"{_place_of(key, source)}: {key.value} is given twice; leave one out")
                keys.add(key.value)
                if key.tag not in (_TEXT, _DATE):
                    raise InputError(
                        f"{_place_of(key, source)}: a name must be a text, got {key.value}; put it into quotes"
                    )
            size += _size(value, source, known)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(value, source, known) for value in node.value)
    known[id(node)] = size
    return size


def _place_of(node: yaml.Node, source: Path | str) -> str:
    """File and line of a node, or the option."""
    return f"{source}:{node.start_mark.line + 1}" if isinstance(source, Path) else source


def _untagged(node: yaml.Node) -> str:
    """The tag that a node would have if it had none written before it; `!!str` may be, it makes a text of a number."""
    if not isinstance(node, yaml.ScalarNode):
        return _GROUP if isinstance(node, yaml.MappingNode) else _LIST
    if node.tag == _TEXT or node.style:
        return _TEXT
    return str(_RESOLVER.resolve(yaml.ScalarNode, node.value, (True, False)))  # type: ignore[no-untyped-call]
