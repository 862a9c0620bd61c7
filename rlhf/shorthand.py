"""A group of options that a bare text stands for: `policy: FOLDER` in the place of `policy: {checkpoint: FOLDER}`.

The group says which of its fields the text fills:

    @dataclass(frozen=True)
    class PolicySource:
        checkpoint: Annotated[Path | None, BARE] = None
        quantization: Literal["nf4"] | None = None

Wherever such a group stands in a config, as a field, an optional one, or under names (dict[str, PolicySource]), a YAML
file and a command line may give the text. It fills the one field and leaves the others as they are, so that
`--policy FOLDER` after a file with `policy: {quantization: nf4}` names the checkpoint and keeps the quantization.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

import yaml

BARE = "bare"
"""Stands in `Annotated` of the field that a bare text fills."""
ABSENT = ("null", "None", "~", "")
OPTIONS_FILES = (".yaml", ".yml", ".json")
"""How the name of a group's file ends where a text fills one of its fields."""


@cache
def hints_of(kind: type, notes: bool = False) -> dict[str, Any]:
    """The types of a dataclass's fields, made once of their words; with `notes` what `Annotated` says stays."""
    return typing.get_type_hints(kind, include_extras=notes)


@cache
def bare_field(kind: Any) -> str | None:
    """Name of the field of a dataclass that a bare text fills; None: it has none, or is no dataclass."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    hints = hints_of(kind, notes=True)
    return next((name for name, hint in hints.items() if BARE in getattr(hint, "__metadata__", ())), None)


def spelled_out(value: Any, hint: Any) -> Any:
    """A value of a YAML file, bare texts written as groups. What is of another form than `hint` is left as it is."""
    group = group_of(hint)
    if group is not None:
        name = bare_field(group)
        if isinstance(value, str) and name is not None:
            return {name: value}
        if isinstance(value, Mapping):
            hints = hints_of(group)
            return {key: spelled_out(part, hints[key]) if key in hints else part for key, part in value.items()}
    named = _named(hint)
    if named is not None and isinstance(value, Mapping):
        return {key: spelled_out(part, named) for key, part in value.items()}
    return value


def spelled_words(words: Sequence[str], kind: type, load: Callable[[str], Any]) -> list[str]:
    """A command line of `--option value`, bare texts written as groups, in it and in the file behind `--config`.

    Args:
        words: each option before its value, as one word with `=` or as two.
        kind: the dataclass whose fields the options are.
        load: reads YAML; it raises what it likes, and the word is left to whoever reads it next.
    """
    found: list[str] = []
    files: dict[str, Any] = {}  # what the files before have said
    entries: dict[str, dict[str, Any]] = {}  # "models.mine" -> what has been said of it
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, sign, value = word.partition("=")
        if not option.startswith("--") or not (sign or (rest and not rest[0].startswith("--"))):
            found.append(word)
            continue
        value = value if sign else rest.pop(0)
        names = option.removeprefix("--").split(".")
        if names == ["config"]:
            given = _read(value, load)
            if isinstance(given, dict):
                spelled = spelled_out(given, kind)
                files |= spelled
                value = value if spelled == given else yaml.safe_dump(spelled, allow_unicode=True)
        else:
            names, value = _spelled_option(names, value, kind, load, files, entries)
        option = f"--{'.'.join(names)}"
        found += [f"{option}={value}"] if sign else [option, value]
    return found


def _spelled_option(
    names: list[str],
    value: str,
    kind: type,
    load: Callable[[str], Any],
    files: Mapping[str, Any],
    entries: dict[str, dict[str, Any]],
) -> tuple[list[str], str]:
    """One option: its names and value as the parser takes them."""
    hint: Any = kind
    for depth, name in enumerate(names):
        group, named = group_of(hint), _named(hint)
        if named is not None and bare_field(group_of(named)) is not None:
            entry = names[: depth + 1]
            known = entries.setdefault(".".join(entry), _at(files, entry))
            _put(known, names[depth + 1 :], value, named, load)
            return entry, json.dumps(known)
        hint = hints_of(group).get(name) if group is not None else named
        if hint is None:
            return names, value
    bare = bare_field(group_of(hint))
    if bare is not None and _is_bare(value, load):
        return [*names, bare], value
    if group_of(hint) is not None or _named(hint) is not None:
        given = _loaded(value, load)
        if isinstance(given, Mapping) and (spelled := spelled_out(given, hint)) != given:
            return names, json.dumps(spelled)
    return names, value


def hint_at(kind: type, names: Sequence[str]) -> Any:
    """The type of an option, by its dotted names; None: there is no such option."""
    hint: Any = kind
    for name in names:
        group = group_of(hint)
        hint = hints_of(group).get(name) if group is not None else _named(hint)
    return hint


def takes_options_file(hint: Any, word: str) -> bool:
    """Whether a word, where there is a file of that name, is read as the file of a group of options."""
    group = group_of(hint)
    return group is not None and (bare_field(group) is None or word.endswith(OPTIONS_FILES))


def _put(known: dict[str, Any], names: Sequence[str], value: str, hint: Any, load: Callable[[str], Any]) -> None:
    """Say `value` of an entry, or of a field in it."""
    bare = bare_field(group_of(hint))
    if not names and bare is not None and _is_bare(value, load):
        known[bare] = value
    elif not names:
        given = _loaded(value, load)
        known |= spelled_out(given, hint) if isinstance(given, Mapping) else {str(bare): given}
    else:
        *groups, last = names
        for group in groups:
            known = known.setdefault(group, {})
        known[last] = _loaded(value, load)


def _is_bare(value: str, load: Callable[[str], Any]) -> bool:
    """Whether a word is a text of its own: no options, no file of options, and not nothing."""
    if value in ABSENT or (value.endswith(OPTIONS_FILES) and not Path(value).is_dir()):
        return False
    return not isinstance(_loaded(value, load), (Mapping, list))


def _loaded(value: str, load: Callable[[str], Any]) -> Any:
    try:
        return load(value)
    except Exception:  # a text that is no YAML is a text
        return value


def _read(file: str, load: Callable[[str], Any]) -> Any:
    """What a file says, or the text itself where it is no file; None where it cannot be read: the parser says why."""
    try:
        return load(Path(file).read_text(encoding="utf-8") if Path(file).is_file() else file)
    except Exception:
        return None


def _at(content: Any, names: Sequence[str]) -> dict[str, Any]:
    """The group that a file's content has under these names, as a copy; empty where there is none."""
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return json.loads(json.dumps(content)) if isinstance(content, dict) else {}


def group_of(hint: Any) -> type | None:
    """The dataclass of a type, through `Annotated` and `| None`."""
    groups = (part for part in alternatives_of(hint) if isinstance(part, type) and dataclasses.is_dataclass(part))
    return next(groups, None)


def _named(hint: Any) -> Any:
    """The type of the values of a dict[str, …], through the same; None: it is no such type."""
    for part in alternatives_of(hint):
        if typing.get_origin(part) is dict:
            return typing.get_args(part)[1]
    return None


def alternatives_of(hint: Any) -> list[Any]:
    """The types that a value may have, through `Annotated` and unions."""
    if typing.get_origin(hint) is Annotated:
        return alternatives_of(hint.__origin__)
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return [part for one in typing.get_args(hint) for part in alternatives_of(one)]
    return [hint]
