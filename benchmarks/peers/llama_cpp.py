"""llama.cpp's side of benchmarks/sampling.py: its server, of one thread, over the checkpoint's weights as a GGUF file.

Prompts go in as token ids, and a prompt's answers are asked for at once, so that the server computes it once for all of
them; it draws from the softmax at the temperature, then from the nucleus, as the other sides do.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

from rlhf.errors import InputError
from rlhf.sampling.protocol import SamplingParams

STARTS, ANSWERS = 120.0, 3600.0  # seconds until it must be there, and until an answer


def answered(
    gguf: Path,
    prompts: Sequence[list[int]],
    number: int,
    params: SamplingParams,
    rows: int,
    spent: Callable[[psutil.Process], float],
) -> tuple[int, float]:
    """Draw `number` answers to each prompt, `rows` at once: how many came, and in how many seconds.

    Args:
        gguf: the model, in the precision that is to be measured.
        spent: the server's process -> its seconds so far.
    """
    settings = {
        "n_cmpl": number,
        "n_predict": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "samplers": ["temperature", "top_p"],
    }
    context = rows * (max(map(len, prompts)) + params.max_new_tokens)
    with _server(gguf, rows, context) as (process, client):

        def ask(prompt: list[int], **options: Any) -> list[dict[str, Any]]:
            answer = client.post("/completion", json={"prompt": prompt, **settings, **options}).raise_for_status()
            found = answer.json()
            return found if isinstance(found, list) else [found]

        ask(prompts[0], n_cmpl=1, n_predict=1)
        started = spent(process)
        with ThreadPoolExecutor(len(prompts)) as pool:
            drawn = [answer for some in pool.map(ask, prompts) for answer in some]
        seconds = spent(process) - started
    return len(drawn), seconds


@contextmanager
def _server(gguf: Path, rows: int, context: int) -> Iterator[tuple[psutil.Process, httpx2.Client]]:
    program = shutil.which("llama-server")
    if program is None:
        raise InputError("peers: llama.cpp needs its program llama-server on the PATH, which is not there")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = ["--parallel", str(rows), "--ctx-size", str(context), "--kv-unified", "--threads", "1"]
    with (
        tempfile.TemporaryFile() as said,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWERS) as client,
    ):
        server = subprocess.Popen([program, "--model", gguf, "--port", str(port), *size], stdout=said, stderr=said)
        try:
            late = time.monotonic() + STARTS
            while not _is_there(client):
                if server.poll() is not None or time.monotonic() > late:
                    said.seek(0)
                    raise InputError(f"llama-server does not start with {gguf}; it says: {said.read()[-500:]!r}")
                time.sleep(0.2)
            yield psutil.Process(server.pid), client
        finally:
            server.kill()
            server.wait()


def _is_there(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False
