"""Annotators by name, for configs: a line here, or `package.module:Class` of your own.

An annotator's class is called with the options of the config by keyword, and with these where it takes them:
`world` (path of the simulated world), `seed` (int), `store` (path of the store that its judgements go to), `batch` (the
name of their batch in it).
"""

from __future__ import annotations

import inspect
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.annotation.protocol import Annotator
from rlhf.errors import InputError, quoted
from rlhf.imports import import_object, own_code
from rlhf.stage import digest

ANNOTATORS = {
    "simulated": "rlhf.simulation.annotator:SimulatedAnnotator",
    "people": "rlhf.annotation.people:People",
    "file": "rlhf.annotation.filled_in:FilledIn",
    "judge": "rlhf.annotation.judges:Judges",
    "proxy": "rlhf.annotation.proxy:Proxy",
}
GIVEN = ("world", "seed", "store", "batch")
KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    str: ("a text", (str,)),
    Path: ("a file", (str, os.PathLike)),
}
"""Of an option, what it is in a sentence, and what a config may give for it."""


def make_annotator(name: str, options: Mapping[str, Any], **given: Any) -> Annotator:
    """The annotator that `name` names, made with `options` and with what of `given` it takes.

    Args:
        name: a name of `ANNOTATORS`, or `package.module:Class`.
        options: keyword arguments of its class. Paths may be texts.
        given: some of `GIVEN`; None is as not given.

    Raises:
        InputError: no such annotator, an option that it does not take, one that it needs, or whatever making it raises.
    """
    make, parameters = _signature(name)
    files = annotator_files(name, options)
    keywords = {key: Path(files[key]) if key in files else value for key, value in options.items()}
    keywords = {key: value for key, value in given.items() if key in parameters and value is not None} | keywords
    for key, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if named and parameter.default is parameter.empty and key not in keywords:
            option = key if key in GIVEN else f"annotator_options.{key}"
            raise InputError(f"annotator: {name} needs {key}; give it with --{option}")
    if name in ANNOTATORS:
        _require_kinds(make, options)
    try:
        made: Annotator = make(**keywords)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"annotator: {name} cannot be made ({type(error).__name__}: {error})") from error
    with own_code("annotator", f"{name}.judge"):
        annotates = callable(getattr(made, "judge", None)) and isinstance(getattr(made, "name", None), str)
    if not annotates:
        raise InputError(f"annotator: {name} is no annotator; its class needs a `name` and a method `judge(pairs)`")
    return made


def annotator_files(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Those of the options that are paths by the annotation of the class's parameter, for checks before anything loads.

    Raises:
        InputError: no such annotator, or an option that it does not take.
    """
    make, parameters = _signature(name)
    any_key = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in options:
        if (key not in parameters and not any_key) or key in GIVEN:
            accepted = ", ".join(key for key in parameters if key not in GIVEN) or "no options"
            raise InputError(f"annotator_options: annotator {name} takes no {key}; it takes {accepted}")
    call = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    hints = typing.get_type_hints(call)
    paths = [key for key in options if {Path, os.PathLike[str]} & {hints.get(key), *typing.get_args(hints.get(key))}]
    return {key: os.fspath(options[key]) for key in paths if isinstance(options[key], str | os.PathLike)}


class AnnotatorFiles:
    """Stands at a config's field of annotator options: those of them that are files, and are there, are inputs."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`; the config says in `annotator` whose options these are."""
        files = annotator_files(config.annotator, value)
        return {f"{field}.{key}": Path(path) for key, path in files.items() if Path(path).exists()}


def asked_of(annotator: Annotator, name: str, options: Mapping[str, Any], **given: Any) -> str:
    """Who is asked, for `Store.add_batch`: judgements of one batch that were made otherwise are set aside.

    An annotator that says so itself has an attribute `asked` (people and filled-in files: the options of the page may
    change, what people said stays). For every other one its name, options, `given`, and what is in its files decide.
    """
    said = getattr(annotator, "asked", None)
    if isinstance(said, str):
        return said
    paths = annotator_files(name, options) | {key: value for key, value in given.items() if isinstance(value, Path)}
    contents = {key: digest(path) for key, path in paths.items() if Path(path).exists()}
    values = {key: value for key, value in given.items() if not isinstance(value, Path)}
    decides = {"annotator": name, "options": {**options, **contents}, **values, "files": contents}
    return json.dumps(decides, sort_keys=True, default=os.fspath)


def _require_kinds(make: Any, options: Mapping[str, Any]) -> None:
    """Raise InputError where an option is of another kind than its parameter; only plain kinds are looked at."""
    hints = typing.get_type_hints(make.__init__)
    for key, value in options.items():
        kinds = [*(typing.get_args(hints.get(key)) or (hints.get(key),))]
        plain = [kind for kind in kinds if isinstance(kind, type) and kind in KINDS]
        others = [kind for kind in kinds if kind not in plain]
        if others in ([], [type(None)]) and not (value is None and others) and not any(_fits(value, k) for k in plain):
            words = " or ".join(KINDS[kind][0] for kind in plain)
            raise InputError(f"annotator_options.{key}: must be {words}, got {quoted(value)}")


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, KINDS[kind][1]) and value == value  # NaN is no number


def _signature(name: str) -> tuple[Any, dict[str, inspect.Parameter]]:
    if ":" not in name and name not in ANNOTATORS:
        raise InputError(
            f"annotator: must be one of {', '.join(ANNOTATORS)}, or package.module:Class of your own, got {name!r}"
        )
    make = import_object("annotator", ANNOTATORS.get(name, name))
    try:
        return make, dict(inspect.signature(make).parameters)
    except (TypeError, ValueError) as error:
        raise InputError(f"annotator: {name} cannot be called ({error}); name a class") from error
