"""A model that several servers have: they are asked in turn, and one that dies is left out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import ChatServer

from rlhf.annotation.judges import Judges
from rlhf.annotation.protocol import Pair
from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.server import ServerSampler
from rlhf.sampling.source import PolicySource

PROMPTS = [[{"role": "user", "content": f"question {i}"}] for i in range(12)]
PARAMS = SamplingParams(temperature=0.8, max_new_tokens=30, seed=3)
NOBODY = "http://127.0.0.1:9/v1"
DYING = 503, b"dying"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ChatServer, ChatServer]]:
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    both = ChatServer(), ChatServer()
    yield both
    for server in both:
        server.close()


def sampler(*urls: str, **options: Any) -> ServerSampler:
    return ServerSampler(ServerConfig(urls, "tiny", **{"retries": 2, "concurrency": 2, **options}))


def texts(*urls: str, **options: Any) -> list[list[str]]:
    return [[sample.text for sample in row] for row in sampler(*urls, **options).sample(PROMPTS, 2, PARAMS)]


def questions(server: ChatServer) -> list[str]:
    return [body["messages"][0]["content"] for body in server.asked]


def test_prompts_are_dealt_out_and_get_the_answers_that_one_address_gives(
    servers: tuple[ChatServer, ChatServer],
) -> None:
    a, b = servers
    together = threading.Barrier(4, timeout=60)  # both of either have to be asked at once

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        if body["max_tokens"] > 1:
            together.wait()
        return 200, ChatServer.answers(body)

    a.reply = b.reply = reply
    drawn = texts(a.url, b.url + "/")
    assert sorted(questions(a) + questions(b)) == sorted(prompt[0]["content"] for prompt in PROMPTS)
    assert len(a.asked) == len(b.asked) == 6
    a.reply = lambda body: (200, ChatServer.answers(body))
    assert drawn == texts(a.url), "seeds are of the prompt, not of the address"


def test_one_that_dies_is_left_out_and_what_it_was_asked_is_asked_elsewhere(
    servers: tuple[ChatServer, ChatServer], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = servers
    lock, now, most = threading.Lock(), 0, 0
    second = threading.Event()
    a.reply = lambda body: (200, a.answers(body)) if len(a.asked) < 3 else DYING

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        if body["max_tokens"] > 1 and len(a.asked) < 3:
            second.wait(0.01)  # leaves it some
        with lock:
            now -= 1
        return 200, b.answers(body)

    b.reply = reply
    drawn = texts(a.url, b.url)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"server: {a.url} answers 503 (dying) to the prompt"), said
    assert "it is left out, and the other 1 address goes on" in said
    assert drawn == texts(b.url), "each prompt has its own answers"
    assert most <= 2, "the one that is left is asked no more at a time than before"
    assert len(a.asked) <= 2 + 2 * 3, "both that were asked there, as often as its patience goes, and no other"


def test_one_that_is_away_at_the_start_is_left_out(
    servers: tuple[ChatServer, ChatServer], capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = servers
    assert texts(NOBODY, a.url) == texts(a.url)
    said = capsys.readouterr().err
    assert said.count("left out") == 1 and said.startswith(f"server: {NOBODY} cannot be reached (")
    with pytest.raises(InputError, match=r"does not serve 'tiny' but other; set server\.model"):
        a.models = ["other"]  # a mistake is no death
        texts(NOBODY, a.url)


def test_where_all_die_one_sentence_says_so(
    servers: tuple[ChatServer, ChatServer], capsys: pytest.CaptureFixture[str]
) -> None:
    for server in servers:
        server.reply = lambda body, own=server: (200, own.answers(body)) if len(own.asked) < 3 else DYING
    came = []
    with pytest.raises(InputError) as raised:
        for position, _ in sampler(*(server.url for server in servers)).stream(PROMPTS * 9, 1, PARAMS):
            came.append(position)
    sentence = str(raised.value)
    assert sentence.endswith(
        ", 3 times in a row, and none of its other addresses answered until then; see to it, then give the same "
        "command again"
    )
    assert sentence.count("see to it") == 1 and capsys.readouterr().err.count("left out") == 1
    assert len(came) == 4, "what came before was given out"
    assert sum(len(server.asked) for server in servers) <= 4 + (2 + 2 + 2) * 3, "no other prompt waited for the dead"
    with pytest.raises(InputError, match=r"/v2 cannot be reached .* and none of its other addresses answered"):
        texts(NOBODY, "http://127.0.0.1:9/v2")


def test_one_that_fails_at_a_prompt_and_answers_others_stays(
    servers: tuple[ChatServer, ChatServer], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = servers
    others, again, answered = 0, threading.Event(), threading.Event()

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal others
        if body["max_tokens"] == 1:
            return 200, a.answers(body)
        if body["messages"][0]["content"] == "question 0":
            if questions(a).count("question 0") == 2:
                again.set()
                answered.wait(60)
            return 500, b"what?"
        again.wait(60)
        others += 1
        if others == 2:  # one of them at a time: the first has been read
            answered.set()
        return 200, a.answers(body)

    a.reply = reply
    b.reply = lambda body: ((body["max_tokens"] > 1 and answered.wait(60)), (200, b.answers(body)))[1]
    drawn = texts(a.url, b.url)
    assert (questions(a).count("question 0"), questions(b).count("question 0")) == (3, 1)
    assert drawn == texts(b.url)
    assert "left out" not in capsys.readouterr().err


def test_a_prompt_that_is_refused_is_asked_nowhere_else(servers: tuple[ChatServer, ChatServer]) -> None:
    for server in servers:
        server.reply = lambda body: (400, b"too long") if body["max_tokens"] > 1 else (200, ChatServer.answers(body))
    with pytest.raises(InputError, match=r"answers 400 \(too long\) to the prompt"):
        sampler(*(server.url for server in servers)).sample(PROMPTS[:1], 1, PARAMS)
    assert sum(len(server.asked) for server in servers) == 1


def test_a_judge_has_several_in_the_same_form(servers: tuple[ChatServer, ChatServer]) -> None:
    a, b = servers
    verdict = {"choices": [{"message": {"content": "[[A]]"}, "finish_reason": "stop"}]}
    a.reply = lambda body: (200, verdict) if not a.asked else DYING
    b.reply = lambda body: (200, verdict)
    pairs = [Pair([{"role": "user", "content": f"question {i}"}], "one", "two", "helpfulness") for i in range(6)]
    judge = Judges([{"url": [a.url, b.url], "model": "tiny", "retries": 0, "concurrency": 1}])
    assert len(list(judge.judge(pairs))) == 6
    assert len(a.asked) == 1 and len(b.asked) == 12


@dataclass(frozen=True)
class Config:
    policy: PolicySource


def test_the_form_in_yaml_and_on_the_command_line(tmp_path: Path) -> None:
    both = ["http://a/v1", "http://b/v1"]
    (tmp_path / "some.yaml").write_text(yaml.safe_dump({"policy": {"server": {"url": both, "model": "m"}}}))
    on_the_line = ["--policy.server.url", f"[{', '.join(both)}]", "--policy.server.model", "m"]
    for words in (["--config", str(tmp_path / "some.yaml")], on_the_line):
        server = parse_config(Config, words).policy.server
        assert server is not None and server.urls == tuple(both) and server.place == "http://a/v1, http://b/v1"
    one = parse_config(Config, ["--policy.server", "{url: http://a/v1, model: m}"]).policy.server
    assert one is not None and one.urls == ("http://a/v1",)
    for url, message in (
        (("http://a/v1", "b/v1"), "url: must begin with http"),
        (("http://a/v1", "http://a/v1/"), "url: must name each address once, got http://a/v1, http://a/v1/"),
        ((), "url: must name each address once, got none"),
    ):
        with pytest.raises(InputError, match=message):
            ServerConfig(url, "m")
    for given, message in (
        ("7", r"policy\.server\.url: must be a list such as \[a, b\] or a text, got 7$"),
        ("[7]", r"policy\.server\.url: must be a text, got 7$"),
        ("{a: b}", r"policy\.server\.url: must be a list such as \[a, b\] or a text, got \{'a': 'b'\}$"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config(Config, ["--policy.server", f"{{url: {given}, model: m}}"])
