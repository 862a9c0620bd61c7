from __future__ import annotations

import json
import math
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.sampling.protocol import SamplingParams, StreamingSampler
from rlhf.sampling.server import ServerConfig, ServerSampler

if TYPE_CHECKING:
    from chat_server import ChatServer
    from transformers import PreTrainedTokenizerFast

PROMPTS = [[{"role": "user", "content": f" question {i} "}] for i in range(6)]
PARAMS = SamplingParams(temperature=0.8, top_p=0.9, max_new_tokens=30, seed=3)


@pytest.fixture
def sampler(chat_server: ChatServer, tiny_tokenizer: PreTrainedTokenizerFast):
    """Makes a sampler of the test's server."""
    renderer = Renderer(tiny_tokenizer)

    def make(**options: Any) -> ServerSampler:
        given = {"url": chat_server.url + "/", "model": "tiny", "retries": 2, "concurrency": 3, "timeout": 5.0}
        return ServerSampler(ServerConfig(**{**given, **options}), renderer)

    return make


def test_every_prompt_gets_its_own_answers_in_one_request(sampler, chat_server: ChatServer) -> None:
    drawn = sampler().sample(PROMPTS, 4, PARAMS)
    assert isinstance(sampler(), StreamingSampler)
    assert [[sample.text[:10] for sample in row] for row in drawn] == [[f"question {i}"] * 4 for i in range(6)]
    assert len(chat_server.asked) == 6 and {body["n"] for body in chat_server.asked} == {4}
    assert len({body["seed"] for body in chat_server.asked}) == 6
    body = chat_server.asked[0]
    assert body["messages"][0]["content"] in [f"question {i}" for i in range(6)], "without the white space around it"
    sent = {name: body[name] for name in ("model", "temperature", "top_p", "max_tokens", "top_k", "min_p")}
    assert sent == {"model": "tiny", "temperature": 0.8, "top_p": 0.9, "max_tokens": 30, "top_k": -1, "min_p": 0.0}
    assert body["repetition_penalty"] == 1.0


def test_seeds_belong_to_the_key_and_the_sample(sampler) -> None:
    def texts(prompts, **options: Any) -> list[list[str]]:
        return [[s.text for s in row] for row in sampler().sample(prompts, 3, **{"params": PARAMS, **options})]

    alone = texts(PROMPTS[4:], keys=[4, 5])
    assert alone == texts(PROMPTS)[4:]
    assert alone != texts(PROMPTS[4:], keys=[5, 4])
    assert alone != texts(PROMPTS[4:], keys=[4, 5], params=SamplingParams(seed=4))


def test_a_sample_holds_what_is_known(sampler, chat_server: ChatServer, tiny_tokenizer) -> None:
    reasons = ["stop", "length"]
    choices = [{"message": {"content": " the river . "}, "finish_reason": reason} for reason in reasons]
    chat_server.reply = lambda body: (200, {"choices": choices[: body["n"]]})
    whole, cut = sampler().sample(PROMPTS[:1], 2, PARAMS)[0]
    assert (whole.text, whole.finished, cut.text, cut.finished) == ("the river .", True, "the river .", False)
    assert whole.token_ids == (*cut.token_ids, tiny_tokenizer.eos_token_id)
    assert tiny_tokenizer.decode(cut.token_ids).strip() == "the river ."
    assert math.isnan(whole.logprob)


def test_a_server_that_ignores_n_is_asked_again_for_the_rest(sampler, chat_server: ChatServer) -> None:
    chat_server.reply = lambda body: (200, chat_server.answers(body, n=min(2, body["n"])))
    drawn = sampler().sample(PROMPTS, 5, PARAMS)
    assert [len(row) for row in drawn] == [5] * 6
    assert [body["n"] for body in sorted(chat_server.asked, key=lambda b: (b["messages"][0]["content"], -b["n"]))] == (
        [5, 3, 1] * 6
    )
    assert len({body["seed"] for body in chat_server.asked}) == 18


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_refuses_n_is_asked_for_one_at_a_time(sampler, chat_server: ChatServer, status: int) -> None:
    chat_server.reply = lambda body: (status, {}) if body["n"] > 1 else (200, chat_server.answers(body))
    assert [len(row) for row in sampler().sample(PROMPTS, 3, PARAMS)] == [3] * 6
    assert [body["n"] for body in chat_server.probes] == [3, 1]
    assert [body["n"] for body in chat_server.asked] == [1] * 18


def test_transformers_serve_gets_the_distribution_in_its_own_words(sampler, chat_server: ChatServer) -> None:
    chat_server.reply = lambda body: (422, {"detail": "?"}) if "top_k" in body else (200, chat_server.answers(body))
    sampler().sample(PROMPTS, 2, SamplingParams(top_k=7))
    assert all(not {"top_k", "min_p", "repetition_penalty"} & body.keys() for body in chat_server.asked)
    assert json.loads(chat_server.asked[0]["generation_config"]) == {
        "do_sample": True,
        "top_k": 7,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


def test_a_server_that_knows_openai_s_fields_alone_is_asked_without_the_others(
    sampler, chat_server: ChatServer
) -> None:
    chat_server.reply = lambda body: (400, b"top_k?") if "top_k" in body else (200, chat_server.answers(body))
    sampler().sample(PROMPTS, 2, SamplingParams())
    assert all(not {"top_k", "min_p", "repetition_penalty"} & body.keys() for body in chat_server.asked)
    with pytest.raises(InputError, match="400"):  # what it would ignore is asked for
        sampler().sample(PROMPTS, 2, SamplingParams(top_k=7))


def test_a_server_that_refuses_an_option_by_its_name_says_what_to_do(sampler, chat_server: ChatServer) -> None:
    def refusing(field: str) -> Any:
        refusal = 400, {"error": {"message": f"Unsupported parameter: '{field}'"}}
        return lambda body: refusal if field in body else (200, chat_server.answers(body | {"seed": 0}))

    chat_server.reply = refusing("seed")
    with pytest.raises(InputError, match=r"'seed'.*; set the server's option seeds to false, and none is sent$"):
        sampler().sample(PROMPTS, 1, PARAMS)
    assert sampler(seeds=False).sample(PROMPTS, 1, PARAMS)[0][0].finished
    chat_server.asked.clear()
    assert sampler().sample(PROMPTS, 1, SamplingParams(temperature=0.0))[0][0].finished
    assert len(chat_server.asked) == 6 and not any("seed" in body for body in chat_server.asked), (
        "a greedy one needs none"
    )
    chat_server.reply = refusing("repetition_penalty")
    with pytest.raises(InputError, match=r"answers 400 .*; set repetition_penalty to 1$"):
        sampler().sample(PROMPTS, 1, SamplingParams(repetition_penalty=1.2))


def test_what_a_server_refuses_is_passed_over_where_that_is_asked_for(
    chat_server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One prompt longer than its context, say; not where it refuses whatever it is asked."""
    judge = ServerSampler(ServerConfig(chat_server.url, "tiny"), who="judge", passes_over=True)
    too_long = "question 2"
    chat_server.reply = lambda body: (
        (413, "too long") if too_long in body["messages"][0]["content"] else (200, chat_server.answers(body))
    )
    samples = [sample for (sample,) in judge.sample(PROMPTS, 1, PARAMS)]
    assert [bool(sample.text) and sample.finished for sample in samples] == [True, True, False, True, True, True]
    assert f"judge: {chat_server.url} refused 1 of 6 prompts" in capsys.readouterr().err
    too_long = "question"
    with pytest.raises(InputError, match=r"judge: .* answers 413"):
        judge.sample(PROMPTS, 1, PARAMS)


def test_a_judge_needs_no_tokenizer(chat_server: ChatServer) -> None:
    judge = ServerSampler(ServerConfig(chat_server.url, "tiny"))
    samples = judge.sample([[{"role": "user", "content": "Q"}]], 1, SamplingParams(temperature=0.0))
    assert samples[0][0].text.startswith("Q") and samples[0][0].token_ids == () and samples[0][0].finished


@pytest.mark.parametrize("failure", [(429, b"slow down"), (503, b"loading"), (500, b""), (200, b"<html>"), (200, {})])
def test_passing_failures_are_repeated(sampler, chat_server: ChatServer, failure: tuple[int, Any]) -> None:
    seen: set[str] = set()

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        question = body["messages"][0]["content"]
        if question in seen:
            return 200, chat_server.answers(body)
        seen.add(question)
        return failure

    chat_server.reply = reply
    drawn = sampler(concurrency=1).sample(PROMPTS, 1, PARAMS)
    assert [row[0].text[:10] for row in drawn] == [f"question {i}" for i in range(6)]
    assert len(chat_server.asked) == 12 and len({body["seed"] for body in chat_server.asked}) == 6


@pytest.mark.parametrize(
    ("reply", "message", "requests"),
    [
        (lambda body: (200, b"<html>"), "gives an answer that is not JSON, 3 times in a row; see to it", 3),
        (lambda body: (200, {"error": "?"}), "an answer without choices, 3 times", 3),
        (lambda body: (200, {"choices": []}), "gives 0 answers where 2 were asked for", 3),
        (
            lambda body: (200, {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}] * 3}),
            "gives 3 ans",
            3,
        ),
        (lambda body: (200, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}), "without text", 3),
        (lambda body: (429, b"slow down"), r"answers 429 \(slow down\) to the prompt 'Hello', 3 times", 3),
        (lambda body: (404, b"no such model"), r"answers 404 \(no such model\) to the prompt 'Hello'$", 1),
        (lambda body: (401, b"who?"), "answers 401 .*; name the environment variable of its key with api_key_env$", 1),
    ],
)
def test_liars_get_one_sentence(sampler, chat_server: ChatServer, reply, message: str, requests: int) -> None:
    chat_server.reply = reply
    with pytest.raises(InputError, match=message) as raised:
        sampler().sample(PROMPTS, 2, PARAMS)
    assert str(raised.value).startswith(f"server: {chat_server.url} ") and "\n" not in str(raised.value)
    assert len(chat_server.probes) == requests and not chat_server.asked


def test_a_server_that_is_silent_or_away(sampler, chat_server: ChatServer) -> None:
    chat_server.reply = lambda body: time.sleep(1.0) or (200, {})
    with pytest.raises(InputError, match=r"does not answer within 0\.05 seconds, 3 times in a row"):
        sampler(timeout=0.05).sample(PROMPTS, 1, PARAMS)
    with pytest.raises(InputError, match=r"server: http://127.0.0.1:9/v1 cannot be reached \(.*refused"):
        sampler(url="http://127.0.0.1:9/v1").sample(PROMPTS, 1, PARAMS)


def test_another_model_is_refused_before_anything_is_asked(sampler, chat_server: ChatServer) -> None:
    chat_server.models = ["llama-2-7b", "llama-2-13b"]
    with pytest.raises(InputError, match=r"does not serve 'tiny' but llama-2-7b, llama-2-13b; set server\.model"):
        sampler().sample(PROMPTS, 1, PARAMS)
    assert not chat_server.probes and not chat_server.asked


def test_a_failure_loses_no_answer_that_came(sampler, chat_server: ChatServer) -> None:
    """One prompt fails while its neighbours are being answered: they are given out, those after it are not asked."""
    asked, failed = threading.Event(), threading.Event()

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        question = body["messages"][0]["content"]
        if question == "question 1":
            asked.wait(5)
            failed.set()
            return 400, b"too long"
        if question == "question 2":
            asked.set()
            failed.wait(5)
            time.sleep(0.1)
        return 200, chat_server.answers(body)

    chat_server.reply = reply
    came = []
    with pytest.raises(InputError, match=r"answers 400 \(too long\) to the prompt 'question 1'"):
        for position, _ in sampler(concurrency=2).stream(PROMPTS * 5, 1, PARAMS):
            came.append(position)
    assert {0, 2} <= set(came) and len(came) < 29


def test_concurrency_is_bounded_and_used(sampler, chat_server: ChatServer) -> None:
    lock, together, now, most = threading.Lock(), threading.Barrier(3, timeout=60), 0, 0

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal now, most
        if body["max_tokens"] > 1:
            with lock:
                now, most = now + 1, max(most, now + 1)
            together.wait()
            with lock:
                now -= 1
            together.wait()
        return 200, chat_server.answers(body)

    chat_server.reply = reply
    sampler(concurrency=3, timeout=600.0).sample(PROMPTS * 3, 2, PARAMS)
    assert most == 3


def test_the_key_is_sent_and_never_shown(sampler, chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="api_key_env: the environment has no RLHF_TEST_KEY"):
        sampler(api_key_env="RLHF_TEST_KEY")
    monkeypatch.setenv("RLHF_TEST_KEY", "secret\n")  # of a file whose line break came along
    sampler(api_key_env="RLHF_TEST_KEY").sample(PROMPTS, 1, PARAMS)
    assert chat_server.headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "url: must begin with http"),
        ({"concurrency": 0}, "concurrency: must be at least 1"),
        ({"timeout": 0}, "timeout: must be above 0"),
        ({"retries": -1}, "retries: must be 0 or above"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServerConfig(**{"url": "http://a/v1", "model": "m", **options})
