"""A stand-in for `python` in a command that a test starts: what takes ten seconds to import is there already.

    accelerate launch --config_file FILE ready_python.py FOLDER recipes/sft.py --config …

The script runs as `__main__` in a fork of a process that has imported torch, transformers and DeepSpeed, and nothing of
rlhf: with the environment, the folder, the arguments and the output of the command that asked for it. There are two
such processes, as the processes of a launcher differ in the hashes of their strings.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

SERVERS = 2
MODULES = (
    "accelerate.commands.launch",
    "datasets",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "peft",
    "pyarrow.parquet",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)


@dataclass(frozen=True)
class ReadyPython:
    """What stands for `python` in a command, and for the script in a launcher's, which starts Python itself.

    Args:
        folder: of the sockets; its path is short.
    """

    folder: Path

    @property
    def script(self) -> list[str]:
        return [__file__, str(self.folder)]

    @property
    def python(self) -> list[str]:
        return [sys.executable, *self.script]


@contextmanager
def ready_pythons(folder: Path) -> Iterator[ReadyPython]:
    from rlhf.lifetime import die_with

    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    servers = [
        subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder / str(number))],
            env=environment | {"PYTHONHASHSEED": str(number + 1)},
            preexec_fn=die_with(os.getpid()),
        )
        for number in range(SERVERS)
    ]
    try:
        for number, server in enumerate(servers):
            while not (folder / str(number)).exists():
                assert server.poll() is None, "it ended while it imported"
                time.sleep(0.1)
        yield ReadyPython(folder)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def serve(place: Path) -> None:
    """Fork a process for each who asks, as long as the test session lives."""
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, _reap)
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{place}.new")
        door.listen(64)
        os.rename(f"{place}.new", place)
        while True:
            asked, _address = door.accept()
            if not os.fork():
                door.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _become(asked)
            asked.close()


def _reap(*_: object) -> None:
    """Let those go that ended; the time that they took is this process's children's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(asked: socket.socket) -> NoReturn:
    """Be the process that was asked for; its exit code is the last thing that it sends."""
    code = 1
    try:
        _, streams, *_ = socket.recv_fds(asked, 1, 3)
        with asked.makefile("r", encoding="utf-8") as lines:
            order: Mapping[str, Any] = json.loads(lines.readline())
        asked.sendall(f"{os.getpid()}\n".encode())
        fcntl.fcntl(asked, fcntl.F_SETOWN, os.getpid())  # who asked is gone: end as its own child would
        fcntl.fcntl(asked, fcntl.F_SETFL, fcntl.fcntl(asked, fcntl.F_GETFL) | os.O_ASYNC)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        random.seed()
        script, *given = order["words"]
        sys.path[:] = order["path"]
        if script == "-m":
            sys.argv, sys.path[0] = given, order["folder"]
            runpy.run_module(given[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [script, *given], str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = exit_code(ended)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        asked.sendall(f"{code & 0xFF}\n".encode())
        os._exit(code & 0xFF)


def exit_code(ended: SystemExit) -> int:
    """As the interpreter has it, which says a text of it on stderr."""
    if isinstance(ended.code, str):
        print(ended.code, file=sys.stderr)
    return 0 if ended.code is None else ended.code if isinstance(ended.code, int) else 1


def ask(folder: Path, given: Sequence[str]) -> int:
    """Have the words run, of the launcher's processes by turns in the one server and the other; the exit code."""
    place = folder / str(int(os.environ.get("RANK", "0")) % SERVERS)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(place))
        order = {"environment": dict(os.environ), "folder": os.getcwd(), "words": list(given), "path": sys.path}
        socket.send_fds(server, [b"x"], [0, 1, 2])
        server.sendall(json.dumps(order).encode() + b"\n")
        with server.makefile("r", encoding="utf-8") as lines:
            pid = int(lines.readline())
            signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
            code = lines.readline()
    if not code:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(code)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(Path(sys.argv[2]))
    else:
        sys.exit(ask(Path(sys.argv[1]), sys.argv[2:]))
