"""A real server of a checkpoint: `transformers serve`, which can be killed and started again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

SERVE = """
import os, sys
from transformers.cli.transformers import main

for line in sys.stdin:
    child = os.fork()  # all is imported: a second start takes no time
    if not child:
        os.dup2(2, 1)
        sys.exit(main())
    print(child, flush=True)
    os.waitpid(child, 0)
"""


class Served:
    """`transformers serve` on a free port, with a model in a Hugging Face cache of its own; where it lacks a package
    the test is skipped.

    Args:
        policy: checkpoint's folder.
        folder: for the cache and the log.
    """

    model = "tests/served"
    """What it calls its model."""

    def __init__(self, policy: Path, folder: Path) -> None:
        missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"`transformers serve` needs {', '.join(missing)}; pip install -e '.[dev]' brings them")
        repo = folder / "hub" / "models--tests--served"
        shutil.copytree(policy.resolve(), repo / "snapshots" / ("0" * 40), copy_function=os.symlink)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        words = ["serve", Served.model, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        words += ["--dtype", "float32"]
        environment = os.environ | {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        self.log = folder / "serve.log"
        with self.log.open("ab") as log:
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", SERVE, *words]
            self._starter = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=environment, text=True)
        self.pid = 0

    def start(self) -> None:
        assert self._starter.stdin is not None and self._starter.stdout is not None
        self._starter.stdin.write("start\n")
        self._starter.stdin.flush()
        self.pid = int(self._starter.stdout.readline())
        deadline = time.monotonic() + 150
        while True:
            try:
                urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()[-2000:]
                time.sleep(0.1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        assert self._starter.stdin is not None and self._starter.stdout is not None
        if self.pid:
            self.kill()
        self._starter.stdin.close()
        self._starter.wait()
        self._starter.stdout.close()
