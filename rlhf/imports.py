"""What may be missing: objects that a user names by `package.module:attribute`, and optional packages."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.errors import InputError

IMPORT_PATH = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")
CODE = ".code"
"""Behind a field's name, among a stage's inputs: the file of the user's own function that it names."""
ANYTHING = (Exception, SystemExit)
"""What a user's own code may raise. A SystemExit that went through would end the command as if all were done."""


DISTRIBUTIONS = {"markdown_it": "markdown-it-py", "sklearn": "scikit-learn"}
"""Optional packages that pip knows by another name."""


def require_packages(what: str, *names: str) -> None:
    """InputError where an optional package is not installed.

    Args:
        what: a field and who needs them, as `tasks: the leaderboard needs`.
        names: as they are imported.
    """
    missing = [DISTRIBUTIONS.get(name, name) for name in names if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(missing)
        raise InputError(f"{what} {packages}, not installed here; install with `pip install {packages}`")


def import_object(field: str, path: str) -> Any:
    """What `path` names; modules are found from the working directory too.

    Raises:
        InputError: naming `field`: not such a path, or whatever the import raises (a user's module may raise anything).
    """
    module, _, attribute = path.partition(":")
    _look_here()
    try:
        found = importlib.import_module(module)
    except ANYTHING as error:
        file = next((at.filename for at in traceback.extract_tb(error.__traceback__) if _is_others(at.filename)), None)
        way_out = "; name it package.module:attribute" if file is None else ""
        raise InputError(f"{field}: {path} cannot be imported ({raised(error, file)}){way_out}") from error
    try:
        return getattr(found, attribute)
    except ANYTHING as error:  # an installed module of that name is found first
        file = getattr(found, "__file__", None)
        place = f" in {file}" if file else ""
        reason = f"{type(error).__name__}: {error}{place}"
        raise InputError(f"{field}: {path} cannot be imported ({reason}); name it package.module:attribute") from error


def code_inputs(field: str, path: str) -> dict[str, Path]:
    """What a stage reads of the user's own code through a field: <field>.code -> `code_of`'s file, where it has one."""
    code = code_of(path)
    return {} if code is None else {f"{field}{CODE}": code}


def code_of(path: str) -> Path | None:
    """The file of a user's own module that `path` names; None: it is no import path, or of something installed.

    Below the working directory it is relative, as paths of data are.

    Args:
        path: package.module:attribute, behind a file and a # too, as of a data layout.
    """
    named = IMPORT_PATH.fullmatch(path.rpartition("#")[2])
    if named is None:
        return None
    _look_here()
    try:
        spec = importlib.util.find_spec(named[1])
    except ANYTHING:  # a package around it is the user's own too
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    file = Path(spec.origin)
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    if any(file.is_relative_to(folder) for folder in [*installed, Path(__file__).parent]):
        return None
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _look_here() -> None:
    """Modules are found from the working directory too, behind what is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _is_others(file: str) -> bool:
    """Whether a line on the way to an error is none of Python's own import's, nor of this module."""
    return not file.startswith("<frozen ") and file not in (__file__, importlib.__file__)


def make_object(field: str, path: str, *arguments: Any) -> Any:
    """What the class (or function) that `path` names makes of the arguments.

    Raises:
        InputError: naming `field`: as for `import_object`, or whatever the call raises.
    """
    make = import_object(field, path)
    given = ", ".join(str(argument) for argument in arguments)
    with own_code(field, path, f"({given})"):
        return make(*arguments)


@contextmanager
def own_code(field: str, name: str, call: str = "") -> Iterator[None]:
    """Around a call of what a config names: what a user's own code raises is a sentence with the file and line of it.

    What the library brings raises what it raises: under a name without a colon, and its examples where they raise an
    InputError. So does an InputError that comes about outside the user's file: it says itself what is wrong.

    Args:
        field: of the config.
        name: what stands there.
        call: behind the name in the sentence.

    Raises:
        InputError: naming `field`.
    """
    try:
        yield
    except ANYTHING as error:
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
        ours = name.startswith("rlhf.") or not _lines(error, file)
        if ":" not in name or (isinstance(error, InputError) and ours):
            raise
        raise InputError(f"{field}: {name}{call} fails ({raised(error, file)})") from error


def raised(error: BaseException, file: str | None) -> str:
    """What was raised, in words, with the last line of `file` on the way there."""
    lines = _lines(error, file)
    return f"{type(error).__name__}: {error}" + (f", {file}:{lines[-1]}" if lines else "")


def _lines(error: BaseException, file: str | None) -> list[int | None]:
    """The lines of `file` on the way to an error."""
    return [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == file]


def own_function(field: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that `name` names in a config's `field`; each call of it is `own_code`."""

    def called(*arguments: Any) -> Any:
        with own_code(field, name):
            return function(*arguments)

    return called


def named_object(field: str, name: str, known: Mapping[str, Any]) -> Any:
    """What a config's choice stands for: an entry of `known`, or an object of the user's own by its import path.

    A class is called without arguments: what comes back is an instance of it.

    Raises:
        InputError: naming `field`: neither a known name nor an import path, or as for `make_object`.
    """
    if name in known:
        return known[name]
    if ":" not in name:
        raise InputError(f"{field}: must be one of {', '.join(known)}, or package.module:attribute, got {name!r}")
    found = import_object(field, name)
    return make_object(field, name) if isinstance(found, type) else found
