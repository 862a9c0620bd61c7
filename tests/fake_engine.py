"""A stand-in for the environment of an inference engine: `bin/vllm serve`, whose draws follow from their seeds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ENDS = 9  # one draw in so many ends an answer

SERVER = """
import json, os, random, shutil, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

here = Path(sys.argv[0]).parents[1]
orders = json.loads((here / "orders.json").read_text())
words = sys.argv[1:]
(here / "words.json").write_text(json.dumps(words))
(here / "environment.json").write_text(json.dumps(dict(os.environ)))
after = lambda name: words[words.index(name) + 1]
print("reads the weights", flush=True)

def given(name, folder):
    with (here / "given.jsonl").open("a") as file:
        copy = here / f"given-{os.getpid()}-{name or 'weights'}"
        shutil.copytree(folder, copy)
        file.write(json.dumps({"name": name, "folder": folder, "copy": str(copy)}) + "\\n")

if "--enable-lora" in words and orders.get("no_lora"):
    raise ValueError("tiny does not support LoRA yet.")
lines = lambda name: (here / name).read_text().count("\\n") if (here / name).exists() else 0
if orders.get("fails") and lines("pids") >= orders.get("starts", 0):
    print(f"(EngineCore pid=7) ERROR 11-29 11:03:34 [core.py:1] {orders['fails']}", flush=True)
    print("RuntimeError: Engine core initialization failed.", flush=True)
    sys.exit(1)
core = subprocess.Popen(["sleep", "600"])
with (here / "pids").open("a") as file:
    file.write(f"{os.getpid()} {core.pid}\\n")
number = 1 + [line.split()[0] for line in (here / "pids").read_text().splitlines()].index(str(os.getpid()))
names = [after("--served-model-name")]
if "--enable-lora" in words:
    name, _, folder = after("--lora-modules").partition("=")
    names.append(name)
    given(name, folder)
elif Path(words[1]).joinpath("model.safetensors").exists():
    given("", words[1])
asked = (here / "asked.jsonl").open("a")

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send({"data": [{"id": name} for name in names]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("_lora_adapter") and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1":
            return self.exchange(body["lora_name"], body.get("lora_path"))
        assert self.path == "/inference/v1/generate" and body["model"] in names
        mortal = lines("pids") <= orders.get("deaths", 1 << 30) and number == orders.get("dies", number)
        if lines("asked.jsonl") >= orders.get("dies_after", 1 << 30) and mortal:
            os.kill(os.getpid(), signal.SIGKILL)
        asked.write(json.dumps(body) + "\\n")
        asked.flush()
        params, draw = body["sampling_params"], random.Random(body["sampling_params"]["seed"])
        ids, finish = [], "length"
        while len(ids) < params["max_tokens"] and finish == "length":
            if draw.randrange(ENDS) == 0:
                ids.append(params["stop_token_ids"][0])
                finish = "stop"
            else:
                ids.append(draw.randrange(10, 60))
        content = [{"token_id": token, "logprob": -token / 128} for token in ids]
        choice = {"index": 0, "token_ids": ids, "finish_reason": finish, "logprobs": {"content": content}}
        self.send({"choices": [choice | orders.get("choice", {})]})

    def exchange(self, name, folder):
        if folder is None:
            names.remove(name)
            return self.send(f"Success: LoRA adapter '{name}' removed successfully.")
        if name in names or orders.get("refuses_adapters"):
            return self.send(f"The lora adapter '{name}' has already been loaded.", 400)
        names.append(name)
        given(name, folder)
        self.send(f"Success: LoRA adapter '{name}' added successfully.")

    def send(self, body, status=200):
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

ThreadingHTTPServer((after("--host"), int(after("--port"))), Handler).serve_forever()
"""


class FakeEngine:
    """An environment folder whose engine does as it is told.

    Args:
        folder: made here.
        orders: "fails": what it says before it ends at once; "starts": not in so many of its starts, the first;
            "no_lora": it refuses adapters; "dies_after": it is killed at the request after so many, over all its
            starts; "deaths": only in so many of its starts, the first; "dies": only in this one, by its number;
            "choice": what it answers besides, or instead; "refuses_adapters": at run time.
    """

    def __init__(self, folder: Path, **orders: Any) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        file = folder / "bin" / "vllm"
        file.write_text(f"#!{sys.executable}\n{SERVER.replace('ENDS', str(ENDS))}", encoding="utf-8")
        file.chmod(0o755)
        self.tell(**orders)

    def tell(self, **orders: Any) -> None:
        (self.folder / "orders.json").write_text(json.dumps(orders), encoding="utf-8")

    @property
    def words(self) -> list[str]:
        """Of the command line that started it last."""
        return list(json.loads((self.folder / "words.json").read_text(encoding="utf-8")))

    def option(self, name: str) -> str:
        """An option's value there."""
        return self.words[self.words.index(f"--{name}") + 1]

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of all requests."""
        file = self.folder / "asked.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def given(self) -> list[dict[str, Any]]:
        """Weights at a start, an adapter there or at run time, in their order: its name, folder, and a copy of that."""
        file = self.folder / "given.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def pids(self) -> list[int]:
        """Of everything that it has ever started."""
        file = self.folder / "pids"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    def starts(self) -> int:
        """How often it came as far as to listen."""
        return len(self.pids) // 2

    def running(self, within: float = 0.0) -> list[int]:
        """Its processes that live, once there are none or so many seconds are over."""
        deadline = time.monotonic() + within
        while (found := [pid for pid in self.pids if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
