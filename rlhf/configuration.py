"""From YAML file and command line to a checked, frozen dataclass.

    accelerate launch recipes/sft.py --config recipes/configs/embedded/sft.yaml --optimizer.learning_rate 1e-4

jsonargparse does the parsing: nested dataclasses, types, `--help` from the docstrings, unknown keys refused. This
module adds the house rule that a user's mistake is answered by one sentence and exit code 2; `rlhf.shorthand` that a
bare text may stand for a group of options.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, get_loader
from jsonargparse.typing import register_type

from rlhf.errors import InputError, mistakes_in_a_sentence, quoted
from rlhf.lifetime import end_with_launcher
from rlhf.option_errors import sentence_of
from rlhf.paths import NamesModel, model_place
from rlhf.shipped import shipped
from rlhf.shorthand import alternatives_of, group_of, hint_at, hints_of, spelled_words, takes_options_file
from rlhf.strict_yaml import require_plain_text, require_plain_yaml

Config = TypeVar("Config")
SEEDS = 2**31
"""Seeds lie below it: numpy takes 32 bits, and a run adds to its own for every version."""
LARGEST = 2**63
"""No integer of an option is so large, for no tensor and no counter holds it."""


def _path(text: str) -> Path:
    if text == "":  # which is the working folder to pathlib
        raise ValueError("must not be empty; name a file or folder, or leave it out")
    return Path(text)


register_type(Path, deserializer=_path, type_check=isinstance)


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves a recipe's docstring as it is: its commands are there to be copied."""


def parse_config(
    config_class: type[Config], argv: Sequence[str] | None = None, description: str | None = None
) -> Config:
    """Read `--config FILE` and `--field value` overrides (later wins) into `config_class`, a dataclass.

    Raises InputError, one sentence, for an unreadable file, an unknown or missing field, a value that the field or the
    dataclass's own `__post_init__` refuses, null where a field has none, a number that is not finite (.inf, .nan),
    whatever field it is in, a seed that a generator does not take, or YAML that `rlhf.strict_yaml` does not take.
    """
    of_any: type = config_class
    parser = _parser_of(of_any, description)
    given = sys.argv[1:] if argv is None else argv
    try:
        _require_plain(given, config_class)
        return _parsed(parser, given, config_class)
    except InputError:
        raise
    except Exception as error:  # jsonargparse raises many kinds, all of them about the user's input
        words = [*(sys.argv if argv is None else argv), "the YAML file"]
        file = words[words.index("--config") + 1] if "--config" in words else words[-1]
        options = [word.removeprefix("--") for word in parser._option_string_actions if word.startswith("--")]
        raise InputError(_one_sentence(error, options, file)) from error


def _parsed(parser: ArgumentParser, argv: Sequence[str], config_class: type[Config]) -> Config:
    """A command line read by a parser of the class's options."""
    words = _gathered(argv, config_class)
    namespace = parser.parse_args(spelled_words(words, config_class, get_loader("yaml")))
    _refuse_lone_values(namespace, config_class)
    for name, value in list(namespace.items()):
        namespace[name] = shipped(value) if isinstance(value, (str, Path)) else value
    fields = parser.instantiate_classes(namespace).as_dict()
    fields.pop("config", None)
    _refuse_bad_values(fields)
    return with_models(config_class(**fields))


def _require_plain(argv: Sequence[str], kind: type) -> None:
    """`rlhf.strict_yaml` of all YAML of a command line: the file behind `--config`, groups of options as a file or as
    a text."""
    option, hint = "", None
    for word in argv:
        value = word
        if word.startswith("--"):
            name, _, value = word.partition("=")
            option = name.removeprefix("--")
            hint = hint_at(kind, option.split("."))
        if (option == "config" or takes_options_file(hint, value)) and os.path.exists(value):
            require_plain_yaml(Path(value))
        elif option == "config" or (hint is not None and not _is_plain(hint)):
            require_plain_text(value, option)


class ConfigReader:
    """`parse_config` for many commands that are alike, as the stages of a plan are; in full each takes 20 to 50 ms.

    Of a command the parser has the options alone that it or its file gives: making one of all takes most of the time.
    A command over the same file that has all options of an earlier one, and differs in plain values alone, is read as
    that one's config with these values put in: each is read by itself, and the dataclasses that hold it are made anew,
    so that they look at it as ever. Whatever else it is, and whatever is wrong with it, is read in full.
    """

    def __init__(self) -> None:
        self._load = cache(get_loader("yaml"))
        self._read: dict[tuple[type, str], list[tuple[dict[str, str], Any]]] = {}

    def read(self, config_class: type[Config], argv: Sequence[str]) -> Config:
        """See `parse_config`; the files that are read must stay as they are meanwhile."""
        try:
            words = spelled_words(_gathered(argv, config_class), config_class, self._load)
        except Exception:  # whatever is wrong with it, the full reading says
            return parse_config(config_class, argv)
        options = dict(zip(words[::2], words[1::2], strict=False))
        if 2 * len(options) != len(words) or not all(name.startswith("--") for name in options):
            return parse_config(config_class, argv)
        file = options.pop("--config", "")
        before = self._read.setdefault((config_class, file), [])
        for others, config in reversed(before):
            if others.keys() <= options.keys():
                with contextlib.suppress(Exception):  # the full reading takes it, or says what is wrong with it
                    found: Config = _with_options(
                        config, {n: word for n, word in options.items() if others.get(n) != word}
                    )
                    return found
        config = self._of_the_given(config_class, argv, options)
        before.append((options, config))
        return config

    def _of_the_given(self, config_class: type[Config], argv: Sequence[str], options: Mapping[str, str]) -> Config:
        of_any: type = config_class
        with contextlib.suppress(Exception):
            _require_plain(argv, config_class)
            content: dict[str, Any] = {}
            if "--config" in argv:
                file = Path(argv[argv.index("--config") + 1])
                content = self._load(file.read_text(encoding="utf-8")) or {}
            names = frozenset(name.removeprefix("--").partition(".")[0] for name in (*content, *options))
            return _parsed(_parser_of(of_any, None, names), argv, config_class)
        return parse_config(config_class, argv)


def _with_options(config: Config, options: Mapping[str, str]) -> Config:
    """The config with plain values, dotted option -> word, in place of its own; fails where one is not plain."""
    tree: dict[str, Any] = {}
    for option, word in options.items():
        *groups, last = option.removeprefix("--").split(".")
        kind: Any = type(config)
        inner = tree
        for group in groups:
            kind = group_of(hints_of(kind)[group])
            inner = inner.setdefault(group, {})
        value = _read_alone(hints_of(kind)[last], word)
        _refuse_null(value, hints_of(kind)[last], last)
        _refuse_bad_values(value, last)
        inner[last] = shipped(value) if not groups and isinstance(value, (str, Path)) else value
    return with_models(_replaced(config, tree))


def with_models(config: Config) -> Config:
    """The config with the folder in the hub's cache in place of each hub name that a field names a model by.

    A field of a model is known by the `rlhf.paths.NamesModel` in its annotation; a name that is not in the cache stays.
    """
    of_any: Any = config
    kind: type = type(config)
    found = {}
    for name, hint in hints_of(kind, notes=True).items():
        value = getattr(config, name)
        placed = _placed(value, _names_model(hint))
        if placed != value:
            found[name] = placed
    return dataclasses.replace(of_any, **found) if found else config


def _placed(value: Any, is_model: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return with_models(value)
    if isinstance(value, dict):
        return {name: _placed(part, is_model) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_placed(part, is_model) for part in value)
    return type(value)(model_place(value)) if is_model and isinstance(value, str | Path) else value


@cache
def _names_model(hint: Any) -> bool:
    """Whether a type, or a part of it, is annotated so."""
    notes = getattr(hint, "__metadata__", ())
    return any(isinstance(note, NamesModel) for note in notes) or any(map(_names_model, typing.get_args(hint)))


def _replaced(config: Config, tree: Mapping[str, Any]) -> Config:
    """A dataclass with other values, groups of them as mappings."""
    return dataclasses.replace(  # type: ignore[type-var]  # it raises where it is no dataclass
        config, **{n: _replaced(getattr(config, n), v) if isinstance(v, dict) else v for n, v in tree.items()}
    )


@cache
def _read_alone(hint: Any, word: str) -> Any:
    """A plain value of one option, as a parser of all options reads it; TypeError where its type is none."""
    if not _is_plain(hint):
        raise TypeError(f"{hint} is a group")
    return _parser_of_one(hint).parse_args(["--value", word]).value


@cache
def _parser_of_one(hint: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--value", type=hint)
    return parser


def _is_plain(hint: Any) -> bool:
    """Whether a type is made of texts, paths and numbers alone."""
    if typing.get_origin(hint) is typing.Literal or hint in (str, Path, int, float, bool, type(None), Ellipsis):
        return True
    return typing.get_origin(hint) in (tuple, list, typing.Union, UnionType) and all(
        _is_plain(part) for part in typing.get_args(hint)
    )


@cache
def _parser_of(config_class: type, description: str | None, names: frozenset[str] | None = None) -> ArgumentParser:
    """Of all fields of a class, or of those with these names: made once, as a plan reads many stages of one recipe."""
    _resolve_annotations(config_class)
    parser = ArgumentParser(
        description=description, exit_on_error=False, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.add_argument("--config", action="config", help="YAML file with the fields below")
    left_out = () if names is None else {field.name for field in dataclasses.fields(config_class)} - names
    parser.add_class_arguments(config_class, skip=set(left_out))
    return parser


def _resolve_annotations(kind: type) -> None:
    """Make types of the annotations of a dataclass and of those nested in it.

    jsonargparse, left with strings, runs the `if TYPE_CHECKING:` block of the module to understand them, torch and all.
    """
    hints = typing.get_type_hints(kind)
    kind.__init__.__annotations__ = hints  # type: ignore[misc]
    for hint in hints.values():
        for part in (hint, *typing.get_args(hint)):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                _resolve_annotations(part)


def _gathered(words: Sequence[str], kind: type) -> list[str]:
    """The command line with `--files a b` as `--files ["a", "b"]`, for the fields that hold several values; groups of
    options, `--judges {url: a} {url: b}`, as `--judges [{url: a}, {url: b}]`. A yes or no without its value is a yes.
    """
    several = {f"--{name}" for name, hint in hints_of(kind).items() if typing.get_origin(hint) in (tuple, list)}
    switches = {f"--{name}" for name, hint in hints_of(kind).items() if hint is bool}
    found: list[str] = []
    rest = list(words)
    while rest:
        found.append(rest.pop(0))
        if found[-1] in several:
            end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
            values, rest = rest[:end], rest[end:]
            if values and all(value.startswith("{") for value in values):
                found.append(f"[{', '.join(values)}]")
            elif len(values) == 1 and values[0].startswith("["):
                found += values
            elif values:
                found.append(json.dumps(values))
        elif found[-1] in switches and (not rest or rest[0].startswith("--")):
            found.append("true")
    return found


def _refuse_lone_values(given: Namespace, kind: type, prefix: str = "") -> None:
    """InputError where a group of options was given one value, or null stands for what has none.

    jsonargparse passes over both.
    """
    for name, hint in hints_of(kind).items():
        if name in given:
            _refuse_null(given[name], hint, f"{prefix}{name}")
        if name in given and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if not isinstance(given[name], Namespace):
                raise InputError(
                    f"{prefix}{name}: must be options with values, such as {{name: value}}, got {given[name]}"
                )
            _refuse_lone_values(given[name], hint, f"{prefix}{name}.")


def _refuse_null(value: Any, hint: Any, name: str) -> None:
    """InputError where a value is null, and its type has no such thing; a group says itself that it is one."""
    parts = alternatives_of(hint)
    takes_null = type(None) in parts or Any in parts or any(None in typing.get_args(part) for part in parts)
    if value is None and not takes_null and not dataclasses.is_dataclass(hint):
        raise InputError(f"{name}: must not be null; leave it out for its default")


def _refuse_bad_values(value: Any, name: str = "") -> None:
    """InputError naming the first option, at any depth, that nothing can be done with: a number, a text, or no such."""
    if isinstance(value, (str, Path)) and "\0" in str(value):
        raise InputError(f"{name}: holds a null character, which no path and no text has, got {quoted(str(value))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}: must be a finite number, got {value}")
    if name.rpartition(".")[2] == "seed" and isinstance(value, int) and not 0 <= value < SEEDS:
        raise InputError(f"{name}: must be 0 or above and below {SEEDS}, got {str(value)[:20]}")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise InputError(f"{name}: must be below 2**63, got {str(value)[:20]}…, a number of {len(str(value))} digits")
    if dataclasses.is_dataclass(value):
        value = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_bad_values(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            _refuse_bad_values(part, name)


def _one_sentence(error: BaseException, options: Sequence[str], file: str) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return sentence_of(" ".join(str(error).split()), options, file).replace('"<unicode string>"', file)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types: nested dataclasses become dicts, paths strings, tuples lists."""
    plain: dict[str, Any] = to_plain(dataclasses.asdict(config))
    return plain


def to_plain(value: Any) -> Any:
    """A value as plain JSON types: paths become strings, tuples lists."""
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def to_yaml(config: Any) -> str:
    """A config as YAML that `--config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def run_recipe(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Entry point of every recipe: parse, run, and answer InputError with one sentence on stderr.

    The exit code is 2, or 3 where `--strict true` found something suspicious.
    """
    end_with_launcher()
    with mistakes_in_a_sentence():
        main(parse_config(config_class, description=sys.modules[main.__module__].__doc__))
