"""A server as OpenAI's, whose answers a test decides."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer:
    """An OpenAI-compatible server on loopback that does as it is told.

    `reply` makes (status, body) of a request's body, a dict or raw bytes; `asked` are the bodies that came, but for the
    first one, which asks for one token to learn what the server understands (`probes` has those).
    """

    def __init__(self) -> None:
        self.models = ["tiny"]
        self.reply: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (200, self.answers(body))
        self.asked: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": model} for model in outer.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.headers = dict(self.headers)
                (outer.probes if body["max_tokens"] == 1 else outer.asked).append(body)
                self._send(*outer.reply(body))

            def _send(self, status: int, body: Any) -> None:
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                with contextlib.suppress(ConnectionError):  # who asked may be gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(text)))
                    self.send_header("Retry-After", "0")
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @staticmethod
    def answers(body: dict[str, Any], n: int | None = None) -> dict[str, Any]:
        """n answers (as many as were asked for), each naming its prompt, its seed and its number."""
        question = body["messages"][-1]["content"]
        texts = [f" {question} {body['seed']} {i}" for i in range(body["n"] if n is None else n)]
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
