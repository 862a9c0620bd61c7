"""A command as a user types it, in a fork of this process: its exit code, its words and its time, without the imports.

What a recipe imports is paid for once. All else is as in a process of its own: a command may exit, abort, be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ready_python import exit_code
from tqdm import tqdm

from rlhf.configuration import parse_config
from rlhf.errors import InputError

STUCK_SECONDS = 300
"""After which a command is taken to wait for ever, also on a busy machine."""
SLOW_SECONDS = 20
"""Of the processor: what no bad input may take."""
MOST_MEMORY = 6 << 30


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    code: its exit code; below 0 the signal that ended it. seconds: of the processor. stuck: it had to be ended.
    """

    code: int
    out: str
    err: str
    seconds: float
    stuck: bool = False

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.stuck or self.seconds > SLOW_SECONDS:
            return "over 20 s"
        if self.code < 0:
            return "abort"
        if "Traceback (most recent call last)" in self.err:
            return "traceback"
        if self.code == 0:
            return "accepted"
        said = [line for line in self.err.splitlines() if line.startswith(("error: ", "usage: "))]
        if self.code in (2, 3) and len(said) == 1 and len(said[0]) < 800:
            return "one sentence"
        return "verdict" if self.code in (1, 130) and (self.out.strip() or self.err.strip()) else "other"


VERDICTS = ("one sentence", "verdict", "accepted", "traceback", "over 20 s", "abort", "other")


def preload(recipes: Sequence[str] = ()) -> None:
    """Import what commands take long to import; make the parsers of these recipes."""
    import accelerate
    import datasets
    import matplotlib.pyplot
    import peft
    import torch
    import transformers

    _ = (accelerate, datasets, matplotlib.pyplot, peft)
    torch.set_num_threads(1)
    _ = [transformers.LlamaForCausalLM, transformers.LlamaForSequenceClassification, transformers.LlamaTokenizerFast]
    for name in recipes:
        main, config = recipe_of(name)
        with contextlib.suppress(InputError):
            parse_config(config, ["--sed", "1"], description=sys.modules[main.__module__].__doc__)


def run_forked(
    words: Sequence[str],
    folder: Path,
    *,
    obeys_modes: bool = False,
    first: Callable[[], object] | None = None,
) -> Ended:
    """Run `rlhf …` or `RECIPE …` in a folder.

    Args:
        words: "rlhf" and its words, or the name of a recipe and its options.
        obeys_modes: files and folders that their modes close are closed, also where root runs this.
        first: called in the fork before anything else.
    """
    said = {name: folder.parent / f"{folder.name}.{name}" for name in ("out", "err")}
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _run(words, folder, said, obeys_modes, first)
    deadline, stuck = time.monotonic() + STUCK_SECONDS, False
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            stuck = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    text = {name: file.read_text(encoding="utf-8", errors="replace") for name, file in said.items()}
    return Ended(os.waitstatus_to_exitcode(status), text["out"], text["err"], used.ru_utime + used.ru_stime, stuck)


def _run(
    words: Sequence[str],
    folder: Path,
    said: Mapping[str, Path],
    obeys_modes: bool,
    first: Callable[[], object] | None,
) -> NoReturn:
    """The fork's own work; ends with the command's exit code, as the interpreter does."""
    code = 1
    try:
        os.setsid()
        for number, name in ((0, None), (1, "out"), (2, "err")):
            flags = os.O_RDONLY if name is None else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open("/dev/null" if name is None else said[name], flags, 0o644), number)
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, name, stream)
        sys.stdin = os.fdopen(0, closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_CPU, (4 * SLOW_SECONDS, 4 * SLOW_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        tqdm.set_lock(threading.RLock())  # the one made before is shared by all forks, and may never be given back
        os.chdir(folder)
        _forget_others_modules(folder)
        sys.dont_write_bytecode = True
        if obeys_modes:
            _obey_modes()
        if first is not None:
            first()
        sys.argv = [str(word) for word in words]
        _start(sys.argv[0], sys.argv[1:])
        code = 0
    except SystemExit as ended:
        code = exit_code(ended)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                code = code or 120
        os._exit(code & 0xFF)


def _obey_modes() -> None:
    """Give up what lets root pass over the modes of files (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH; Linux)."""
    kernel = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the same of the capabilities from 32 on
    if not kernel.capget(header, sets):
        sets[0], sets[1] = sets[0] & ~0b110, sets[1] & ~0b110
        kernel.capset(header, sets)


def _forget_others_modules(folder: Path) -> None:
    """Modules of the names of the folder's own that this process has of other ones: a user's command has none."""
    own = {file.stem for file in folder.glob("*.py")}
    sys.path[:] = [place for place in sys.path if place and not any(Path(place, f"{n}.py").exists() for n in own)]
    for name in [name for name in sys.modules if name in own]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _start(name: str, words: Sequence[str]) -> None:
    if name == "rlhf":
        from rlhf.cli import main

        main(words)
        return
    from rlhf.configuration import run_recipe

    recipe, config = recipe_of(name)
    run_recipe(recipe, config)


def recipe_of(name: str) -> tuple[Callable[[Any], None], type]:
    """The `main` of a recipe, and the class of its config."""
    import typing

    from rlhf.iteration.plan import find_recipe

    spec = importlib.util.spec_from_file_location(f"recipe_{name}", find_recipe(name))
    assert spec is not None and spec.loader is not None
    if spec.name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    main = sys.modules[spec.name].main
    return main, typing.get_type_hints(main)["config"]
