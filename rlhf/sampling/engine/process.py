"""The engine's server as a process of this one: started on loopback, waited for, stopped. Light: no torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf import lifetime
from rlhf.errors import notice
from rlhf.http_client import JsonClient, RequestFailed
from rlhf.sampling.protocol import SamplerGone

START_SECONDS = 1800.0  # large weights are read from disk, and on a GPU compiled for
NOT_HANDED_ON = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|TORCHELASTIC_|ACCELERATE_|FSDP_|PYTHON(PATH|HOME|DONTWRITEBYTECODE)$"
    r"|VIRTUAL_ENV$"
)
"""Variables of this process that the engine would take for its own: a launcher's, and those of another environment."""
DEATH_SECONDS = 20.0  # from an error that it answers to its end, if that was of it
ALWAYS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENGINE_READY_TIMEOUT_S": f"{START_SECONDS:.0f}",
}


class EngineProcess:
    """A running server. It ends when it is closed or no longer held, and with this process, however that ends.

    Args:
        command: that serves a policy, without address and name.
        variables: of its environment, beside those of this process.
        who: the field that asks for it, for messages.
        what: is served, for messages.
        scratch: folder that goes with the server.
        quiet: say nothing of its start.

    Raises:
        SamplerGone: it ends before it answers, or does not answer within half an hour.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        who: str,
        what: str,
        scratch: Path | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self.who, self._what = who, f"{Path(command[0]).name} on {what}"
        self.name = f"policy-{secrets.token_hex(8)}"  # nobody else's server has it, should one take the port first
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        descriptor, log = tempfile.mkstemp(prefix="rlhf-engine-", suffix=".log")
        self._log = Path(log)
        address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", self.name]
        with open(descriptor, "wb") as stream:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", lifetime.__file__, str(scratch or ""), log, *command, *address],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=engine_environment(os.environ, variables, Path(command[0]).parent),
                start_new_session=True,
            )
        self._close = weakref.finalize(self, _stop, self._keeper, self._log, os.getpid())
        self._wait(quiet)

    def _wait(self, quiet: bool) -> None:
        if not quiet:
            notice(f"{self.who}: {self._what} is being started")
        begun = time.monotonic()
        with JsonClient(self.url, timeout=10.0, retries=0) as client:
            while not self._answers(client):
                if self._keeper.poll() is not None:
                    raise self._failure("ended before it answered")
                if time.monotonic() - begun > START_SECONDS:
                    raise self._failure(f"does not answer within {START_SECONDS:.0f} seconds")
                time.sleep(0.2)
        if not quiet:
            notice(f"{self.who}: {self._what} answers after {time.monotonic() - begun:.0f} seconds")

    def _answers(self, client: JsonClient) -> bool:
        """Whether this very server does."""
        try:
            return any(model["id"] == self.name for model in client.ask_now("v1/models")["data"])
        except (RequestFailed, KeyError, TypeError):
            return False

    def death(self) -> SamplerGone | None:
        """The sentence, where it has ended; a moment is left to it for that, where a request has just failed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(DEATH_SECONDS)
            return self._failure("died while it answered")
        return None

    def _failure(self, did: str) -> SamplerGone:
        lines = self._log.read_text(encoding="utf-8", errors="replace")
        self.close(keep_log=True)
        return SamplerGone(f"{self.who}: {self._what} {did} ({said_last(lines)}); its log is {self._log}")

    def close(self, *, keep_log: bool = False) -> None:
        """Stop it, and wait until it is gone."""
        if keep_log:
            self._close.detach()
            _stop(self._keeper, None, os.getpid())
        else:
            self._close()


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line: true is a flag, false the flag's opposite, null is left out."""
    words: list[str] = []
    for name, value in options.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        elif isinstance(value, Mapping):
            words += [f"--{dashed}", json.dumps(value)]
        elif isinstance(value, list | tuple):
            words += [f"--{dashed}", *map(str, value)]
        elif value is not None:
            words += [f"--{dashed}", str(value)]
    return words


def said_last(log: str) -> str:
    """What a log says of why its process ended: its first error, of which the later ones are but news, or its end."""
    lines = [re.sub(r"^(\(.*?pid=\d+\)\s*)?([A-Z]+ [\d-]+ [\d:]+ \[.*?\]\s*)?", "", line) for line in log.splitlines()]
    errors = (line.strip() for line in lines if re.match(r"\s*([\w.]*(Error|Exception)\b|ended by SIG)", line))
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return next(errors, last)[:300]


def engine_environment(own: Mapping[str, str], variables: Mapping[str, str], programs: Path) -> dict[str, str]:
    """The environment of an engine: this process's, less what it would misunderstand, and `variables`.

    Args:
        programs: folder of those of its own environment, found first: on a GPU it compiles kernels with its ninja.
    """
    kept = {name: value for name, value in own.items() if not NOT_HANDED_ON.match(name)}
    path = os.pathsep.join([str(programs), own.get("PATH", os.defpath)])
    return {**kept, "PATH": path, **ALWAYS, **variables}


def _stop(keeper: subprocess.Popen[bytes], log: Path | None, owner: int) -> None:
    if os.getpid() != owner:  # a fork's end is not the engine's
        return
    keeper.terminate()
    keeper.wait()
    if log is not None:
        log.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
