"""Servers that hang, drip, redirect, break off, flood and lie: each ends in an answer or in one sentence."""

from __future__ import annotations

import gc
import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import anyio
import pytest

from rlhf.errors import InputError
from rlhf.http_client import JsonClient, RequestFailed, check_url
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.server import ServerConfig, ServerSampler

KEY = "sk-the-secret-of-this-test"
Behaviour = Callable[["Wire"], None]


class Wire:
    """One request to the server of the test, and the raw bytes that answer it."""

    def __init__(self, handler: StreamRequestHandler, server: HostileServer) -> None:
        self.handler, self.server = handler, server
        self.method, self.path, _ = handler.rfile.readline().decode().split(" ", 2)
        lines = iter(lambda: handler.rfile.readline().decode().strip(), "")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = handler.rfile.read(int(self.headers.get("content-length", 0)))
        self.body = json.loads(content) if content else None

    def send(self, data: bytes | str) -> None:
        self.handler.wfile.write(data.encode() if isinstance(data, str) else data)

    def answer(self, status: int, content: Any, *headers: str) -> None:
        """A whole response; content: bytes, or what becomes JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(data)}", "Connection: close", *headers]
        self.send("\r\n".join([*lines, "", ""]).encode() + data)

    def drip(self, start: str, drop: str) -> None:
        """Send `start`, then a drop every few milliseconds until the client leaves."""
        self.send(start)
        while not self.server.closing.wait(0.02):
            self.send(drop)


class HostileServer:
    """Lists its model, and does to every other request what `behave` does."""

    def __init__(self) -> None:
        self.behave: Behaviour = lambda wire: wire.answer(200, {})
        self.requests: list[Wire] = []
        self.closing = threading.Event()
        outer = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                try:
                    wire = Wire(self, outer)
                    outer.requests.append(wire)
                    if wire.path.endswith("/models"):
                        wire.answer(200, {"data": [{"id": "tiny"}]})
                    else:
                        outer.behave(wire)
                except (OSError, ValueError):  # the client has left
                    pass

        class Server(ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    monkeypatch.setattr("rlhf.http_client.LONGEST_WAIT", 0.0)
    monkeypatch.setattr("rlhf.http_client.MOST_BYTES", 1 << 20)
    monkeypatch.setenv("RLHF_TEST_KEY", KEY)
    server = HostileServer()
    yield server
    server.close()


def draw(server: HostileServer, prompts: int = 1, n: int = 1, **options: Any) -> list[list[tuple[str, bool]]]:
    """(text, finished) of what a judge is answered there."""
    given = {"url": server.origin + "/v1", "model": "tiny", "retries": 1, "api_key_env": "RLHF_TEST_KEY"}
    sampler = ServerSampler(ServerConfig(**{**given, **options}))
    talks = [[{"role": "user", "content": f"question {i}"}] for i in range(prompts)]
    drawn = sampler.sample(talks, n, SamplingParams(max_new_tokens=8, temperature=0.0))
    return [[(sample.text, sample.finished) for sample in row] for row in drawn]


def choice(content: Any = "fine", reason: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}


def choices(*some: Any) -> Behaviour:
    return lambda wire: wire.answer(200, {"choices": list(some)})


def chunked(*pieces: bytes) -> Behaviour:
    def behave(wire: Wire) -> None:
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for piece in [*pieces, b""]:
            wire.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    return behave


def reset(wire: Wire) -> None:
    wire.send('HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"choices": [')
    wire.handler.wfile.flush()
    connection = wire.handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    connection.close()


def flood(wire: Wire) -> None:
    wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not wire.server.closing.is_set():
        wire.send(b" " * 65536)


def redirect_loop(wire: Wire) -> None:
    wire.answer(307, b"", f"Location: /v1/again{len(wire.server.requests)}")


def echo(status: int) -> Behaviour:
    return lambda wire: wire.answer(status, f"you sent {wire.headers['authorization']}".encode())


OK = json.dumps({"choices": [choice()]}).encode()
HALF_EMOJI = b'{"choices": [{"message": {"content": "a \\ud83d b"}, "finish_reason": "stop"}]}'
SLOW = {"timeout": 0.4, "retries": 0}
LIES: dict[str, tuple[Behaviour, str, dict[str, Any]]] = {
    "silence": (lambda wire: wire.server.closing.wait(), "does not answer within 0.4 seconds", SLOW),
    "slow headers": (lambda wire: wire.drip("HTTP/1.1 200 OK\r\nX-Slow: ", "a"), "within 0.4 seconds", SLOW),
    "dripped body": (lambda wire: wire.drip("HTTP/1.1 200 OK\r\n\r\n", " "), "within 0.4 seconds", SLOW),
    "dripped chunks": (
        lambda wire: wire.drip("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n"),
        "within 0.4 seconds",
        SLOW,
    ),
    "dripped error": (lambda wire: wire.drip("HTTP/1.1 500 Oh\r\n\r\n", "a"), "within 0.4 seconds", SLOW),
    "dripped continues": (
        lambda wire: wire.drip("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"),
        "within 0.4 seconds",
        SLOW,
    ),
    "endless body": (flood, "an answer of more than 1 MiB, 2 times", {}),
    "gzip bomb": (
        lambda wire: wire.answer(200, gzip.compress(b" " * (4 << 20)), "Content-Encoding: gzip"),
        "an answer of more than 1 MiB, 2 times",
        {},
    ),
    "broken gzip": (lambda wire: wire.answer(200, OK, "Content-Encoding: gzip"), "breaks off its answer", {}),
    "length too long": (
        lambda wire: wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + OK),
        r"breaks off its answer \(peer closed",
        {},
    ),
    "length too short": (
        lambda wire: wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\n" + OK),
        "not JSON",
        {},
    ),
    "length a word": (lambda wire: wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n" + OK), "breaks off", {}),
    "reset": (reset, r"breaks off its answer \(Connection reset by peer\), 2 times in a row", {}),
    "nothing": (lambda wire: None, r"breaks off its answer \(Server disconnected", {}),
    "no HTTP": (lambda wire: wire.send(b"\x16\x03\x01 hello\r\n\r\n"), "breaks off its answer", {}),
    "headers without end": (lambda wire: wire.send("HTTP/1.1 200 OK\r\nX: " + "a" * 999_999), "breaks off", {}),
    "no content": (lambda wire: wire.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"), "not JSON", {}),
    "half JSON": (lambda wire: wire.answer(200, OK[:40]), "an answer that is not JSON, 2 times", {}),
    "HTML": (lambda wire: wire.answer(200, b"<html>busy</html>"), "an answer that is not JSON", {}),
    "HTML error": (
        lambda wire: wire.answer(502, b"<html>bad\x1b[2J gateway"),
        r"502 \(<html>bad\?\[2J gateway\) to",
        {},
    ),
    "no UTF-8": (lambda wire: wire.answer(200, b'{"choices": "\xff\xfe"}'), "not JSON", {}),
    "deep JSON": (lambda wire: wire.answer(200, b"[" * 200_000), "not JSON", {}),
    "long integer": (lambda wire: wire.answer(200, b'{"choices": ' + b"9" * 9999 + b"}"), "not JSON", {}),
    "a stream": (lambda wire: wire.answer(200, b'data: {"choices": []}\n\ndata: [DONE]\n'), "streams its answer", {}),
    "a list": (lambda wire: wire.answer(200, []), "an answer without choices", {}),
    "a number": (lambda wire: wire.answer(200, 7), "an answer without choices", {}),
    "choices null": (lambda wire: wire.answer(200, {"choices": None}), "an answer without choices", {}),
    "choices a text": (lambda wire: wire.answer(200, {"choices": "abc"}), "an answer without choices", {}),
    "message a text": (choices({"message": "hi", "finish_reason": "stop"}), "an answer without choices", {}),
    "no choices": (choices(), "gives 0 answers where 1 were asked for", {}),
    "more choices": (choices(choice(), choice()), "gives 2 answers where 1 were asked for", {}),
    "content a number": (choices(choice(3)), "an answer without text", {}),
    "content in parts": (choices(choice([{"type": "text", "text": "a"}])), "an answer without text", {}),
    "content null": (choices(choice(None)), "an answer without text, 2 times", {}),
    "tool calls": (choices(choice(None, "tool_calls", tool_calls=[{}])), "without text, a call of tools", {}),
    "reasoning alone": (choices(choice(None, reasoning_content="hm")), "without text, only reasoning .* parser", {}),
    "reasoning cut off": (choices(choice(None, "length")), "without text, only .* raise max_new_tokens", {}),
    "no finish_reason": (choices({"message": {"content": "a"}}), r"does not say whether .*finish_reason", {}),
    "finish_reason null": (choices(choice(reason=None)), r"does not say whether .*finish_reason", {}),
    "finish_reason a list": (choices(choice(reason=["stop"])), r"does not say whether .*finish_reason", {}),
    "abort": (choices(choice("a", "abort")), r"gives up an answer \(finish_reason abort\)", {}),
    "an unheard-of end": (choices(choice("a", "banana")), r"for an unknown reason \(finish_reason 'banana'\)", {}),
    "redirect to nowhere": (lambda wire: wire.answer(307, b""), r"redirects \(307\) to no address", {}),
    "redirect to rubbish": (lambda wire: wire.answer(307, b"", "Location: http://a:b/"), r"\(307\) to no address", {}),
    "redirect to a file": (lambda wire: wire.answer(307, b"", "Location: file:///etc/hosts"), "another origin", {}),
    "redirects for ever": (redirect_loop, "redirects more than 5 times", {}),
    "POST into GET": (lambda wire: wire.answer(303, b"", "Location: /v1/x"), r"a POST to a GET \(303\)", {}),
    "not modified": (lambda wire: wire.answer(304, b""), r"answers 304 \(\)", {}),
    **{f"status {n}": (echo(n), rf"answers {n} \(you sent Bearer <key>\)", {}) for n in (400, 401, 403, 404, 413, 422)},
    **{f"status {n}": (echo(n), rf"answers {n} \(.*, 2 times in a row; see to it", {}) for n in (408, 429, 500, 503)},
    "odd Retry-After": (lambda wire: wire.answer(429, b"", "Retry-After: \xb2"), r"answers 429 \(\)", {}),
}
HANDLED: dict[str, tuple[Behaviour, tuple[str, bool]]] = {
    "chunked": (chunked(OK[:9], OK[9:]), ("fine", True)),
    "gzip": (lambda wire: wire.answer(200, gzip.compress(OK), "Content-Encoding: gzip"), ("fine", True)),
    "no length": (lambda wire: wire.send(b"HTTP/1.0 200 OK\r\n\r\n" + OK), ("fine", True)),
    "NaN": (lambda wire: wire.answer(200, OK[:-1] + b', "usage": NaN}'), ("fine", True)),
    "half an emoji": (lambda wire: wire.answer(200, HALF_EMOJI), ("a \ufffd b", True)),
    "cut off": (choices(choice("fine", "length")), ("fine", False)),
    "ended by its token": (choices(choice("fine", "eos_token")), ("fine", True)),
    "filtered": (choices(choice("fi", "content_filter")), ("fi", False)),
    "reasoning beside": (choices(choice("fine", reasoning_content="hm")), ("fine", True)),
    "too long": (choices(choice("word " * 9999)), ("word " * 204 + "word", False)),
    "redirect within the origin": (
        lambda wire: (
            choices(choice())(wire) if "?" in wire.path else wire.answer(308, b"", f"Location: {wire.path}?a=b")
        ),
        ("fine", True),
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_hostile_server_ends_in_one_sentence(hostile: HostileServer, name: str) -> None:
    hostile.behave, message, options = LIES[name]
    with pytest.raises(InputError, match=message) as raised:
        draw(hostile, **options)
    said = str(raised.value)
    assert said.startswith(f"server: {hostile.origin}/v1 ") and said.isprintable() and len(said) < 500
    assert KEY not in said


@pytest.mark.parametrize("name", HANDLED)
def test_an_odd_server_is_understood(hostile: HostileServer, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    hostile.behave, answer = HANDLED[name]
    assert draw(hostile) == [[answer]]
    assert {wire.method for wire in hostile.requests if not wire.path.endswith("/models")} == {"POST"}
    assert ("1 of 1 answers of" in capsys.readouterr().err) == (name == "too long")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", ["models", "chat"])
def test_nothing_goes_to_another_origin(hostile: HostileServer, status: int, path: str) -> None:
    other = HostileServer()
    hostile.behave = lambda wire: wire.answer(status, b"", f"Location: {other.origin}/v1/chat")
    client = JsonClient(hostile.origin + "/v1", api_key_env="RLHF_TEST_KEY")
    with client, pytest.raises(RequestFailed) as raised:
        client.ask_now("get" if path == "models" else "post", None if path == "models" else {"a": "prompt"})
    other.close()
    get_of_post = status == 303 and path == "chat"
    said = "redirects a POST to a GET" if get_of_post else f"redirects to another origin ({other.origin}), to which"
    assert said in str(raised.value) and not other.requests and len(hostile.requests) == 1


def test_the_same_host_by_another_scheme_or_port_is_another_origin(hostile: HostileServer) -> None:
    for target in ("https" + hostile.origin[4:], "http://127.0.0.1", "http://127.0.0.1.nip.io", "//user:pw@127.1:1/"):
        hostile.behave = lambda wire, target=target: wire.answer(307, b"", f"Location: {target}")
        with JsonClient(hostile.origin) as client, pytest.raises(RequestFailed, match="another origin"):
            client.ask_now("x", {})


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-one two", "sk-\u00e9", "sk-\x00"])
def test_a_key_that_no_header_carries_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    if "\0" not in key:  # no environment holds it
        monkeypatch.setenv("RLHF_TEST_KEY", key)
    else:
        monkeypatch.setattr(os, "environ", {"RLHF_TEST_KEY": key})
    with pytest.raises(InputError, match="api_key_env: what RLHF_TEST_KEY holds is no key") as raised:
        ServerConfig("http://a/v1", "m", api_key_env="RLHF_TEST_KEY")
    assert "sk-" not in str(raised.value) and "\n" not in str(raised.value)


def test_the_key_is_in_no_log(hostile: HostileServer, caplog: pytest.LogCaptureFixture) -> None:
    hostile.behave = lambda wire: wire.answer(200, OK, f"X-Echo: {wire.headers['authorization']}")
    with caplog.at_level("DEBUG"):
        assert draw(hostile) == [[("fine", True)]]
    assert KEY not in caplog.text and hostile.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_environment_proxies_are_not_asked_for_this_machine(
    hostile: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = HostileServer()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.origin)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    hostile.behave = choices(choice())
    assert draw(hostile) == [[("fine", True)]] and not proxy.requests
    proxy.behave = lambda wire: wire.answer(200, {"by": wire.path})
    with JsonClient("http://judge.invalid:8000/v1") as client:
        assert client.ask_now("x") == {"by": "http://judge.invalid:8000/v1/x"}
    proxy.close()
    monkeypatch.setenv("all_proxy", "gopher://user:pw@proxy")
    with pytest.raises(InputError, match=r"environment: HTTP_PROXY.* holds what no client can use") as raised:
        JsonClient("http://judge.invalid/v1")
    assert "pw" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "url: must begin with http"),
        ("ftp://a/v1", "url: must begin with http"),
        ("http://", "url: must begin with http"),
        ("http://[::1/v1", "url: must begin with http"),
        ("http://a:99999/v1", "url: must begin with http"),
        ("http://a b/v1", "url: must begin with http"),
        ("http://user:hidden@a/v1", "url: must hold no user name or password"),
        ("http://a/v1?api_key=hidden", "url: must end with a path"),
        ("http://a/v1#x", "url: must end with a path"),
    ],
)
def test_addresses_that_cannot_be_asked(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        check_url("url", url)
    assert "hidden" not in str(raised.value)


def test_seeds_and_the_longest_answer_in_the_server_s_words(hostile: HostileServer) -> None:
    def behave(wire: Wire) -> None:
        if "max_tokens" in wire.body:
            error = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
            wire.answer(400, {"error": {"message": error}})
        else:
            wire.answer(200, {"choices": [choice()]})

    hostile.behave = behave
    assert draw(hostile, seeds=False) == [[("fine", True)]]
    bodies = [wire.body for wire in hostile.requests if wire.body is not None]
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 1, 8]
    assert not any("seed" in body for body in bodies) and not any(body["stream"] for body in bodies)


def test_silent_answers_among_others_are_counted(hostile: HostileServer, capsys: pytest.CaptureFixture[str]) -> None:
    def behave(wire: Wire) -> None:
        thought = wire.body["messages"][0]["content"] == "question 1"
        wire.answer(200, {"choices": [choice(None, "length") if thought else choice()]})

    hostile.behave = behave
    assert draw(hostile, 3) == [[("fine", True)], [("", False)], [("fine", True)]]
    assert "server: 1 of 3 answers of" in capsys.readouterr().err


def test_silent_answers_are_not_given_out_before_others_speak(hostile: HostileServer) -> None:
    hostile.behave = choices(choice(None, reasoning="hm"))
    sampler = ServerSampler(ServerConfig(hostile.origin, "tiny", concurrency=1))
    talks = [[{"role": "user", "content": "Q"}]] * 30
    with pytest.raises(InputError, match="gives answers without text, only reasoning"):
        next(sampler.stream(talks, 1, SamplingParams()))
    assert len(hostile.requests) < 20


CTRL_C = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.server import ServerConfig, ServerSampler

talks = [[{"role": "user", "content": "Q"}]] * 9
sampler = ServerSampler(ServerConfig(sys.argv[1], "tiny", concurrency=3, timeout=900))
try:
    sampler.sample(talks, 1, SamplingParams())
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_what_is_in_flight(hostile: HostileServer) -> None:
    in_flight = threading.Semaphore(0)

    def behave(wire: Wire) -> None:
        if wire.body["max_tokens"] == 1:
            wire.answer(200, {"choices": [choice()]})
        else:
            in_flight.release()
            wire.server.closing.wait()

    hostile.behave = behave
    process = subprocess.Popen([sys.executable, "-c", CTRL_C, hostile.origin], stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert in_flight.acquire(timeout=120)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[0] == "interrupted\n" and process.returncode == 0


def test_leaving_ends_what_is_in_flight(hostile: HostileServer) -> None:
    hostile.behave = lambda wire: wire.server.closing.wait()
    with JsonClient(hostile.origin) as client:
        asked = client.start(lambda: client.ask("x"))
        while not hostile.requests:
            time.sleep(0.01)
    assert asked.cancelled()


def test_leaving_as_a_task_is_made_leaves_nothing_that_nobody_awaited(
    hostile: HostileServer, recwarn: pytest.WarningsRecorder
) -> None:
    """A connection begins in a task of its own, which may not have begun yet."""
    client = JsonClient(hostile.origin)

    async def connect() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            client._loop.stop()

    asked = client.start(connect)
    client._thread.join()
    gc.collect()
    assert asked.cancelled() and [str(found.message) for found in recwarn] == []


class Asker:
    """Asks until somebody answers, as what waits for an engine does."""

    def ask(self, client: JsonClient) -> bool:
        try:
            return bool(client.ask_now("x"))
        except RequestFailed:
            return False


def test_who_asked_in_vain_goes_with_its_last_name(hostile: HostileServer) -> None:
    """What a failure leaves behind holds nobody until garbage is collected: a process that asked ends in time."""
    hostile.behave = lambda wire: wire.answer(500, {})
    gc.disable()
    try:
        asker = Asker()
        gone = weakref.ref(asker)
        with JsonClient(hostile.origin, retries=0) as client:
            assert not asker.ask(client)
        del asker
        until = time.monotonic() + 20  # the client's thread may let go of it a moment later
        while gone() is not None and time.monotonic() < until:
            time.sleep(0.02)
        assert gone() is None
    finally:
        gc.enable()
