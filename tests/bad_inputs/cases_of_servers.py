"""Servers that lie, break off, flood or answer something else: in the policy's place, as a judge, as a reward."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from case import Case
from world import call

DEEP = b"[" * 100_000 + b"]" * 100_000
Reply = bytes | tuple[int, dict[str, str], bytes]
"""A body, or (status, headers, body); a header of None's name is left out."""

MODELS: dict[str, Reply | None] = {
    "nobody there": None,
    "no list": b"[]",
    "no JSON": b"<html>welcome</html>",
    "no model": b'{"data": []}',
    "another model": b'{"data": [{"id": "other"}]}',
    "half a character": b'{"data": [{"id": "\\ud83d"}]}',
    "deep": b'{"data": ' + DEEP + b"}",
    "digits": b'{"data": ' + b"9" * 6000 + b"}",
    "an escape": b'{"data": [{"id": "\\u001b[31m"}]}',
    "null": b"null",
    "a flood": b'{"data": "' + b"x" * 1_000_000,
    "models of texts": b'{"data": ["m"]}',
    "a model that is a number": b'{"data": [{"id": 7}]}',
    "a hundred thousand models": json.dumps({"data": [{"id": f"m{i}" * 9} for i in range(100_000)]}).encode(),
    "a name of a megabyte": json.dumps({"data": [{"id": "n" * 1_000_000}]}).encode(),
    "no UTF-8": b'{"data": [{"id": "\xff\xfe"}]}',
    "a redirect to itself": (307, {"Location": "/v1/models"}, b""),
    "a redirect away": (302, {"Location": "http://198.51.100.7/v1/models"}, b""),
    "a redirect to a file": (301, {"Location": "file:///etc/passwd"}, b""),
    "a login page": (401, {"WWW-Authenticate": "Basic"}, b"<html>log in</html>"),
    "no content": (204, {}, b""),
    "gzip that was not asked for": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 10_000_000)),
    "gzip that is none": (200, {"Content-Encoding": "gzip"}, b"x" * 100),
    "a length that lies": (200, {"Content-Length": "99999"}, b'{"data": [{"id": "m"}]}'),
    "a length below 0": (200, {"Content-Length": "-1"}, b'{"data": [{"id": "m"}]}'),
    "chunks that are none": (200, {"Transfer-Encoding": "chunked"}, b"zz\r\nhello\r\n0\r\n\r\n"),
    "chunks without an end": (200, {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n"),
}
FINE = {"message": {"content": "fine"}, "finish_reason": "stop"}


def _choice(**changes: Any) -> bytes:
    return json.dumps({"choices": [{**FINE, **changes}]}).encode()


ANSWERS: dict[str, Reply] = {
    "no choices": b'{"choices": []}',
    "choices of numbers": b'{"choices": [1, 2, 3]}',
    "no text": _choice(message={"content": None}),
    "a text that is a number": _choice(message={"content": 7}),
    "half an emoji": b'{"choices": [{"message": {"content": "\\ud83d"}, "finish_reason": "stop"}]}',
    "an error with 200": b'{"error": "busy"}',
    "cut off": b'{"choices": [{"mess',
    "two where one was asked for": json.dumps({"choices": [FINE] * 9}).encode(),
    "a message that is a list": _choice(message=[1]),
    "a text of NaN": b'{"choices": [{"message": {"content": NaN}, "finish_reason": "stop"}]}',
    "an end of another type": _choice(finish_reason=7),
    "an end that nobody knows": _choice(finish_reason="banana"),
    "choices as an object": b'{"choices": {"0": 1}}',
    "a text of 8 MB": _choice(message={"content": "word " * 1_600_000}),
    "a text of brackets": _choice(message={"content": "[[A " * 500_000}),
    "a text of zeros": _choice(message={"content": "\x00" * 50}),
    "nothing but thoughts": _choice(message={"content": "", "reasoning_content": "hm"}),
    "a call of a tool": _choice(message={"content": None, "tool_calls": [{"id": 1}]}, finish_reason="tool_calls"),
    "a refusal in its field": _choice(message={"content": None, "refusal": "No."}),
    "a redirect of the question": (307, {"Location": "http://198.51.100.7/"}, b""),
    "a server that is full": (503, {"Retry-After": "99999999999"}, b"busy"),
    "a status of 600": (600, {}, b"?"),
}
SCORES: dict[str, Reply] = {
    "scores of NaN": b'{"scores": [NaN, NaN, NaN, NaN]}',
    "infinite scores": b'{"scores": [1e999, 1, 1, 1]}',
    "scores as texts": b'{"scores": ["1", "2", "3", "4"]}',
    "scores as flags": b'{"scores": [true, false, true, false]}',
    "scores of null": b'{"scores": [null, 1, 1, 1]}',
    "scores in columns": b'{"scores": [[1], [2], [3], [4]]}',
    "one score for all": b'{"scores": 1.0}',
    "too many scores": json.dumps({"scores": [1.0] * 1000}).encode(),
    "no scores": b'{"scores": []}',
    "scores by name": b'{"scores": {"0": 1, "1": 2}}',
    "deep scores": b'{"scores": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
    "digits for a score": b'{"scores": [' + b"9" * 400 + b", 1, 1, 1]}",
    "a list alone": b"[1, 2, 3, 4]",
    "a text": b"0.5",
    "an error page": (500, {}, b"<html>oops</html>"),
    "no UTF-8": b'{"scores": [1, 2, 3, 4], "by": "\xff"}',
}


def cases() -> Iterator[Case]:
    """All of this file."""
    listing = b'{"data": [{"id": "m"}]}'
    policies = {name: _policy(name) for name in ("evaluate", "rejection_sampling", "collect_preferences")}
    for number, (name, reply) in enumerate(MODELS.items()):
        for recipe in ("evaluate", "rejection_sampling") if number < 11 else ("evaluate",):
            yield _served(f"{recipe} policy.server: models: {name}", policies[recipe], reply, b"{}")
    for number, (name, reply) in enumerate(ANSWERS.items()):
        for recipe in ("evaluate", "collect_preferences") if number < 7 else ("collect_preferences",):
            reason = "what is no character is written as a sign for one" if name == "half an emoji" else ""
            yield _served(f"{recipe} policy.server: answers: {name}", policies[recipe], listing, reply, reason)
        if number >= 7:
            judge = {"annotator": "judge", "annotator_options": "{judges: [{url: URL, model: m, retries: 0}]}"}
            words = call("collect_preferences", judge)
            yield _served(f"collect_preferences judge: answers: {name}", words, listing, reply)
    for number, (name, reply) in enumerate(SCORES.items()):
        recipe = ("evaluate", "rejection_sampling", "gate_sweep")[number % 3]
        words = call(recipe, helpfulness="rlhf.rewards.examples:Served")
        yield _served(f"{recipe} a served reward: {name}", words, listing, reply)


def _policy(recipe: str) -> tuple[str, ...]:
    server = {"url": "URL", "model": "m", "retries": "0"}
    return call(recipe, {f"policy.server.{name}": value for name, value in server.items()})


def _served(name: str, words: tuple[str, ...], models: Reply | None, answers: Reply, accepted: str = "") -> Case:
    """A call that asks a server of this machine; it serves in the case's own process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    given = tuple(word.replace("URL", url) for word in words)
    serve = _serving(port, models, answers)

    def first() -> None:
        import rlhf.http_client

        rlhf.http_client.FIRST_WAIT = 0.0
        os.environ["REWARD_URL"] = url
        serve()

    return Case("servers", name, given, accepted=accepted, first=first)


def _serving(port: int, models: Reply | None, answers: Reply) -> Callable[[], object]:
    def serve() -> None:
        if models is None:
            return
        import threading
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(models)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._send(answers)

            def _send(self, reply: Reply) -> None:
                status, headers, body = (200, {}, reply) if isinstance(reply, bytes) else reply
                self.send_response(status)
                for header, value in _whole(headers, body).items():
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    return serve


def _whole(headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    """With a length, where they say nothing else of it."""
    return dict(headers) if "Transfer-Encoding" in headers else {"Content-Length": str(len(body)), **headers}
