"""Chat completions of OpenAI's protocol, in the words of whichever server speaks it: vllm, SGLang, llama.cpp, …

They differ in the names of what OpenAI's protocol lacks (top-k), in the name of the longest answer and in whether they
draw K answers a request: one request for one token finds that out. Each has defaults of its own (llama.cpp: top-k 40
and min-p 0.05; `transformers serve`: greedy), so everything that shapes the distribution is sent. Light: no torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from rlhf.conversation import Conversation, given_kwargs
from rlhf.errors import InputError, notice, quoted
from rlhf.http_client import WAY_OUT, JsonClient, RequestFailed, WrongAnswer, check_url, key_from
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage import Effect

REFUSED = (400, 413, 422)  # of one prompt: longer than the model's context, for instance
SHAPE = ("top_k", "min_p", "repetition_penalty")  # fields that OpenAI's own protocol lacks
WAYS_OUT = {  # field of a request that a server may refuse by its name -> what the user can do
    "seed": "set the server's option seeds to false, and none is sent",
    "chat_template_kwargs": "leave chat_template_kwargs out",
    "top_k": "set top_k to 0",
    "repetition_penalty": "set repetition_penalty to 1",
    "stop": "leave stop out",
    "temperature": "set the temperature that it takes",
    "top_p": "set top_p to 1",
}
FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
CUT_OFF = (
    *("length", "max_tokens", "model_length", "repetition", "tool_calls", "function_call"),
    *("content_filter", "safety", "sensitive", "recitation", "refusal"),
)
Answers = list[tuple[str | None, bool]]  # (text, finished); None: only reasoning


@dataclass(frozen=True)
class ServerConfig:
    """A server that answers in place of the policy's weights, at one address or at several.

    Args:
        url: its address with the version, for instance http://localhost:8000/v1; or those of several servers of the
            same model, which answer side by side.
        model: the policy's name there, as `<url>/models` lists it.
        api_key_env: environment variable that holds the key; null: the server asks for none.
        concurrency: requests at a time to each address, of each process.
        timeout: seconds until a request counts as failed, from connecting to the answer's last byte.
        retries: repetitions of a failed request, after 1, 2, 4 .. 60 seconds.
        seeds: send a seed with every request; off for servers that cannot draw from one (a greedy request goes without
            where the server refuses it).
    """

    url: Annotated[tuple[str, ...] | str, Effect.NONE]
    model: str
    api_key_env: Annotated[str | None, Effect.NONE] = None
    concurrency: Annotated[int, Effect.NONE] = 16
    timeout: Annotated[float, Effect.NONE] = 600.0
    retries: Annotated[int, Effect.NONE] = 8
    seeds: bool = True

    def __post_init__(self) -> None:
        for url in self.urls:
            check_url("url", url)
        if len({url.rstrip("/") for url in self.urls}) < max(1, len(self.urls)):
            raise InputError(f"url: must name each address once, got {', '.join(self.urls) or 'none'}")
        if self.concurrency < 1:
            raise InputError(f"concurrency: must be at least 1, got {self.concurrency}")
        if not 0 < self.timeout < math.inf:
            raise InputError(f"timeout: must be above 0 seconds, got {self.timeout}")
        if self.retries < 0:
            raise InputError(f"retries: must be 0 or above, got {self.retries}")
        if self.api_key_env is not None:
            key_from(self.api_key_env)

    @property
    def urls(self) -> tuple[str, ...]:
        """Its addresses."""
        return (self.url,) if isinstance(self.url, str) else tuple(self.url)

    @property
    def place(self) -> str:
        """Its addresses, in sentences."""
        return ", ".join(url.rstrip("/") for url in self.urls)


def require_panel(field: str, servers: Sequence[ServerConfig]) -> None:
    """InputError where two of several judges are one model: figures go by its name, and its verdicts are its own."""
    models = [server.model for server in servers]
    twice = next((model for model in models if models.count(model) > 1), None)
    if twice is not None:
        raise InputError(f"{field}: {twice} stands there twice; the judges of a panel are different models")


@contextmanager
def open_chat(config: ServerConfig, num_samples: int, params: SamplingParams, who: str = "server") -> Iterator[Chat]:
    """A chat with the server's model; leaving it (Ctrl-C too) ends the requests in flight.

    Args:
        config: where, and with what patience.
        num_samples: answers to each prompt.
        params: how they are drawn.
        who: what the server is called in sentences, by its field: "policy.server", "judge".

    Raises:
        InputError: the server does not serve the model, or refuses a request in all words known here.
    """
    first, *others = config.urls
    with JsonClient(
        first,
        who=who,
        api_key_env=config.api_key_env,
        timeout=config.timeout,
        retries=config.retries,
        concurrency=config.concurrency * len(config.urls),
    ) as client:
        chat = Chat(client, len(config.urls))
        for each in [client, *(client.at(url) for url in others)]:
            try:
                chat.add(_Address(each, config, num_samples, params))
            except RequestFailed as error:
                if not error.may_pass:
                    raise
                chat.leave_out(error)
        yield chat


class Chat:
    """Chat completions of one model, of one server or of several that have it; see `open_chat`.

    Of several each prompt is asked at the address that has the fewest requests, and of those at the one that has had
    the fewest. Where that fails, as often as its patience goes, the prompt is asked at another; an address that
    answered nobody meanwhile is left out for good, which is said on stderr.
    """

    def __init__(self, client: JsonClient, addresses: int) -> None:
        self.client = client  # on whose thread all are asked
        self._given, self._left = addresses, addresses
        self._living: list[_Address] = []
        self._lost: RequestFailed | None = None

    def add(self, address: _Address) -> None:
        """An address that answers."""
        self._living.append(address)

    def leave_out(self, error: RequestFailed, address: _Address | None = None) -> None:
        """Ask no more at an address, for this reason; RequestFailed where it was the last."""
        if address is not None:
            self._living.remove(address)
        self._left -= 1
        what = str(error).removesuffix(WAY_OUT)
        if self._left:
            more = "address goes" if self._left == 1 else "addresses go"
            notice(f"{what}; it is left out, and the other {self._left} {more} on")
            return
        self._lost = error
        if self._given > 1:
            lost = f"{what}, and none of its other addresses answered until then{WAY_OUT}"
            self._lost = RequestFailed(lost, error.status, error.said)
        raise self._lost from None

    def start(self, prompt: Conversation, key: int) -> Future[Answers]:
        """A prompt's answers, with seeds that `key` decides; prompts are asked in the order in which they come."""
        return self.client.start(partial(self.answers, prompt, key))

    async def answers_unless_refused(self, prompt: Conversation, key: int) -> Answers | RequestFailed:
        """`answers`; the refusal where the server refuses this prompt, and not whatever it is asked."""
        try:
            return await self.answers(prompt, key)
        except RequestFailed as error:
            if error.status not in REFUSED:
                raise
            return error

    async def answers(self, prompt: Conversation, key: int) -> Answers:
        """The same within a job of the client."""
        failed: list[_Address] = []
        failure: RequestFailed | None = None
        while True:
            left = [address for address in self._living if address not in failed]
            if not left:
                raise self._lost or failure or AssertionError("an address is living until the last is lost")
            address = min(left, key=lambda each: (each.waiting, each.asked))
            try:
                async with address.turn():
                    if address in self._living:
                        return await address.answers(prompt, key)
            except RequestFailed as error:
                if error.status in REFUSED:
                    raise
                failure = error
                failed.append(address)
                if address in self._living and not error.alive:
                    self.leave_out(error, address)


class _Address:
    """One server of a chat, asked in its own words, which are found out first."""

    def __init__(self, client: JsonClient, config: ServerConfig, num_samples: int, params: SamplingParams) -> None:
        self.client, self._config, self._num_samples, self._seed = client, config, num_samples, params.seed
        self.waiting, self.asked = 0, 0
        self._slots = asyncio.Semaphore(config.concurrency)
        self._sends_seeds = config.seeds
        self._length = "max_tokens"  # how this server calls the longest answer
        self._require_model()
        self._request = self._agreed_request(num_samples, params)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One of its requests at a time."""
        self.waiting, self.asked = self.waiting + 1, self.asked + 1
        try:
            async with self._slots:
                yield
        finally:
            self.waiting -= 1

    def _require_model(self) -> None:
        def read(listing: Any) -> list[str]:
            try:
                return [str(model["id"]) for model in listing["data"]]
            except (KeyError, TypeError):
                raise WrongAnswer("gives no list of models at /models; is url the one that ends in /v1?") from None

        served = self.client.ask_now("models", read=read, retries=min(2, self._config.retries))
        if self._config.model not in served:
            some = ", ".join(name[:80] if name.isprintable() else ascii(name)[:80] for name in served[:10])
            more = f" and {len(served) - 10} more" if len(served) > 10 else ""
            raise InputError(
                f"{self.client.who}: {self.client.url} does not serve {self._config.model!r} but "
                f"{some or 'no model'}{more}; set {self.client.who}.model, or start the server with that model"
            )

    def _agreed_request(self, num_samples: int, params: SamplingParams) -> dict[str, Any]:
        """A request without messages and seed, in this server's words; "n" is the most that may be asked for."""
        request: dict[str, Any] = {
            "model": self._config.model,
            "stream": False,
            "temperature": params.temperature,
            "top_p": params.top_p,
            self._length: params.max_new_tokens,
            "n": num_samples,
            "top_k": params.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": params.repetition_penalty,
        }
        if kwargs := given_kwargs():  # as vllm, SGLang and llama.cpp take them
            request["chat_template_kwargs"] = kwargs
        if params.stop:
            request["stop"] = list(params.stop)
        while True:
            probe = request | {self._length: 1, "messages": [{"role": "user", "content": "Hello"}]}
            try:
                self.client.ask_now(**self._asked(probe, seed=0), final=500 if request["n"] > 1 else 0)
                return request
            except RequestFailed as error:  # 500: llama.cpp's answer to n > 1, until 2025
                named = _named(error.said) if error.status in (400, 422) else None
                if named == "seed" and self._sends_seeds and params.temperature == 0:
                    self._sends_seeds = False  # a greedy answer needs none
                elif named == "seed" and self._sends_seeds:
                    raise _with_way_out(error, named) from None
                elif error.status in (400, 422) and "max_tokens" in request and "max_completion_tokens" in error.said:
                    request["max_completion_tokens"] = request.pop("max_tokens")  # OpenAI's reasoning models
                    self._length = "max_completion_tokens"
                elif error.status == 422 and "top_k" in request:  # `transformers serve` on a field it does not know
                    shape = {name: request.pop(name) for name in SHAPE}
                    shape |= {"top_k": params.top_k, "do_sample": params.temperature > 0}
                    request["generation_config"] = json.dumps(shape)
                elif error.status in (400, 422, 500) and request["n"] > 1:
                    request["n"] = 1
                elif error.status == 400 and "top_k" in request and (params.top_k, params.repetition_penalty) == (0, 1):
                    request = {name: value for name, value in request.items() if name not in SHAPE}  # OpenAI itself
                elif named in probe:
                    raise _with_way_out(error, named) from None
                else:
                    raise

    def _asked(self, request: dict[str, Any], seed: int) -> dict[str, Any]:
        """Arguments of the client's `ask`."""
        body = request | {"seed": seed} if self._sends_seeds else request
        about = f" to the prompt {body['messages'][-1]['content'][:60]!r}"
        return {
            "path": "chat/completions",
            "body": body,
            "about": about,
            "read": lambda answer: read_answers(answer, body["n"]),
        }

    async def answers(self, prompt: Conversation, key: int) -> Answers:
        """A prompt's answers, with seeds that `key` decides."""
        messages = [{"role": m["role"], "content": m["content"].strip()} for m in prompt]
        answers: Answers = []
        while len(answers) < self._num_samples:
            n = min(self._request["n"], self._num_samples - len(answers))
            request = self._request | {"messages": messages, "n": n}
            answers += await self.client.ask(**self._asked(request, request_seed(self._seed, key, len(answers))))
        return answers


def read_answers(answer: Any, n: int) -> Answers:
    """(text, finished) of the one to `n` choices of a chat completion.

    Where the length ended an answer before its text began, or all went into reasoning that the server keeps apart, the
    text is None. Half an emoji (a lone surrogate) becomes U+FFFD.

    Raises:
        WrongAnswer: this is no chat completion; it says how its texts ended in no known way, or has no text.
    """
    try:
        found = [(c["message"], c["message"].get("content"), c.get("finish_reason")) for c in answer["choices"]]
    except (KeyError, TypeError, AttributeError):
        raise WrongAnswer("gives an answer without choices") from None
    if not 1 <= len(found) <= n:
        raise WrongAnswer(f"gives {len(found)} answers where {n} were asked for")
    answers: Answers = []
    for message, text, reason in found:
        if not isinstance(reason, str) or not reason:
            raise WrongAnswer("does not say whether an answer came to its end (finish_reason)")
        if reason in ("abort", "error"):
            raise WrongAnswer(f"gives up an answer (finish_reason {reason})")
        if reason not in FINISHED + CUT_OFF:
            raise WrongAnswer(f"ends an answer for an unknown reason (finish_reason {quoted(reason)})")
        thought = any(message.get(name) for name in ("reasoning_content", "reasoning"))
        if text is None and (thought or reason == "length"):
            answers.append((None, reason in FINISHED))
        elif isinstance(text, str):
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            answers.append((whole, reason in FINISHED))
        else:
            raise WrongAnswer("gives an answer without text" + ", a call of tools" * ("tool_calls" in message))
    return answers


def _named(said: str) -> str | None:
    """The first field of `WAYS_OUT` that a server names where it refuses a request."""
    found = re.search(rf"\b({'|'.join(WAYS_OUT)})\b", said)
    return found[1] if found else None


def _with_way_out(error: RequestFailed, field: str) -> RequestFailed:
    return RequestFailed(f"{error}; {WAYS_OUT[field]}", error.status, error.said)


def request_seed(seed: int, key: int, index: int) -> int:
    """31 bits, which every server takes: of the request whose first answer is sample `index` of prompt `key`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key} {index}".encode()).digest()[:4], "big") >> 1
