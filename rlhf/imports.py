"""Objects that a user names: by import path, `package.module:attribute`, or by a name that a registry knows."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from rlhf.errors import InputError


def import_object(field: str, path: str) -> Any:
    """What `path` names; modules are found from the working directory too.

    Raises:
        InputError: naming `field`: not such a path, or whatever the import raises (a user's module may raise anything).
    """
    module, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{field}: {path} cannot be imported ({reason}); name it package.module:attribute") from error


def make_object(field: str, path: str, *arguments: Any) -> Any:
    """What the class (or function) that `path` names makes of the arguments.

    Raises:
        InputError: naming `field`: as for `import_object`, or whatever the call raises.
    """
    make = import_object(field, path)
    try:
        return make(*arguments)
    except InputError:
        raise
    except Exception as error:
        given = ", ".join(str(argument) for argument in arguments)
        raise InputError(f"{field}: {path}({given}) fails ({type(error).__name__}: {error})") from error


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
