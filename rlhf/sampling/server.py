"""K answers a prompt from a server with OpenAI's chat completions: vllm, SGLang, llama.cpp, `transformers serve`.

They differ in the names of what OpenAI's protocol lacks (top-k) and in whether they draw K answers a request: one
request for one token finds that out. Each has defaults of its own (llama.cpp: top-k 40 and min-p 0.05; `transformers
serve`: greedy), so everything that shapes the distribution is sent. Light: no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http.client import HTTPException
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.sampling.protocol import Sample, SamplingParams

if TYPE_CHECKING:
    from rlhf.conversation import Renderer

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the first repetition, and before any
Result = TypeVar("Result")


@dataclass(frozen=True)
class ServerConfig:
    """A server that answers in place of the policy's weights.

    Args:
        url: its address with the version, for instance http://localhost:8000/v1.
        model: the policy's name there, as `<url>/models` lists it.
        api_key_env: environment variable that holds the key; null: the server asks for none.
        concurrency: requests at a time, of each process.
        timeout: seconds until an unanswered request counts as failed.
        retries: repetitions of a failed request, after 1, 2, 4 .. 60 seconds.
    """

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 8

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"url: must begin with http:// or https://, got {self.url}")
        if self.concurrency < 1:
            raise InputError(f"concurrency: must be at least 1, got {self.concurrency}")
        if self.timeout <= 0:
            raise InputError(f"timeout: must be above 0 seconds, got {self.timeout}")
        if self.retries < 0:
            raise InputError(f"retries: must be 0 or above, got {self.retries}")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise InputError(f"api_key_env: the environment has no {self.api_key_env}; export the server's key in it")


class _Failed(InputError):
    """A request that came to nothing. `status`: of HTTP, None where no valid answer came; `wait`: seconds asked for."""

    def __init__(self, message: str, status: int | None = None, wait: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.wait = status, wait

    @property
    def may_pass(self) -> bool:
        return self.status is None or self.status in (408, 429) or self.status >= 500


class ServerSampler:
    """A StreamingSampler over a server.

    A sample's seed is a function of (params.seed, key, index) here too, but whether the same seed draws the same answer
    is the server's affair. A Sample's token_ids are those of its text as `renderer` tokenizes it, which need not be the
    ones drawn; its logprob is NaN: servers do not agree on whether theirs are taken before or after the temperature.

    Args:
        config: where, and with what patience.
        renderer: of the policy's tokenizer; None where only texts are wanted (a judge): samples have no token_ids.
    """

    def __init__(self, config: ServerConfig, renderer: Renderer | None = None) -> None:
        self.config = config
        self.renderer = renderer
        self.url = config.url.rstrip("/")
        self._stopped = Event()

    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """Draw `num_samples` answers for each prompt; see `Sampler`."""
        answers = dict(self.stream(prompts, num_samples, params, keys))
        return [answers[i] for i in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """The same prompt by prompt, as they come; see `StreamingSampler`.

        Raises:
            InputError: the server does not serve the model, refuses a request, or failed at it once more than `retries`
                times. What else had been asked for by then has been given out before.
        """
        keys = range(len(prompts)) if keys is None else keys
        self._stopped.clear()
        self._require_model()
        request = self._agreed_request(num_samples, params)
        pool = ThreadPoolExecutor(self.config.concurrency)
        futures = {
            pool.submit(self._answers, request, prompt, num_samples, (params.seed, key)): i
            for i, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
        }
        failure = None
        quiet = len(prompts) <= self.config.concurrency or os.environ.get("LOCAL_RANK", "0") != "0"
        try:
            with tqdm(total=len(prompts), desc="sampling", unit="prompt", disable=quiet, leave=False) as progress:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if error is None:
                        yield futures[future], self._samples(prompts[futures[future]], future.result())
                    elif failure is None:
                        failure = error
                        for other in futures:
                            other.cancel()
                    progress.update()
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure

    def _require_model(self) -> None:
        listing = self._patiently(lambda: self._fetch("models"), min(2, self.config.retries))
        try:
            served = [str(model["id"]) for model in listing["data"]]
        except (KeyError, TypeError):
            raise InputError(
                f"server: {self.url}/models is no list of models; is url the one that ends in /v1?"
            ) from None
        if self.config.model not in served:
            raise InputError(
                f"server: {self.url} does not serve {self.config.model!r} but {', '.join(served) or 'no model'}; "
                "set server.model, or start the server with that model"
            )

    def _agreed_request(self, num_samples: int, params: SamplingParams) -> dict[str, Any]:
        """A request without messages and seed, in this server's words; "n" is the most that may be asked for."""
        shape: dict[str, Any] = {"top_k": params.top_k or -1, "min_p": 0.0}
        shape["repetition_penalty"] = params.repetition_penalty
        request: dict[str, Any] = {
            "model": self.config.model,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_new_tokens,
            "n": num_samples,
        } | shape
        if params.stop:
            request["stop"] = list(params.stop)
        probe = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "seed": 0}
        while True:
            try:
                self._ask(request | probe, final=500 if request["n"] > 1 else 0)  # llama.cpp's to n > 1, until 2025
                return request
            except _Failed as error:
                if error.status == 422 and "top_k" in request:  # `transformers serve` on a field it does not know
                    config = shape | {"top_k": params.top_k, "do_sample": params.temperature > 0}
                    request = {name: value for name, value in request.items() if name not in shape}
                    request["generation_config"] = json.dumps(config)
                elif error.status in (400, 422, 500) and request["n"] > 1:
                    request["n"] = 1
                elif error.status == 400 and "top_k" in request and (params.top_k, params.repetition_penalty) == (0, 1):
                    request = {name: value for name, value in request.items() if name not in shape}  # OpenAI itself
                else:
                    raise

    def _answers(
        self, request: dict[str, Any], prompt: Conversation, num_samples: int, seed: tuple[int, int]
    ) -> list[tuple[str, bool]]:
        """(text, finished) of a prompt's answers, in as many requests as the server needs; runs in a thread."""
        messages = [{"role": m["role"], "content": m["content"].strip()} for m in prompt]
        answers: list[tuple[str, bool]] = []
        while len(answers) < num_samples:
            n = min(request["n"], num_samples - len(answers))
            answers += self._ask(request | {"messages": messages, "n": n, "seed": _seed(*seed, len(answers))})
        return answers

    def _samples(self, prompt: Conversation, answers: list[tuple[str, bool]]) -> list[Sample]:
        if self.renderer is None:
            return [Sample(text.strip(), (), math.nan, finished) for text, finished in answers]
        dialogues = self.renderer.dialogues(
            [[*prompt, {"role": "assistant", "content": text}] for text, _ in answers], train="last"
        )
        samples = []
        for (text, finished), dialogue in zip(answers, dialogues, strict=True):
            ids = [token for token, trained in zip(dialogue.input_ids, dialogue.loss_mask, strict=True) if trained]
            samples.append(Sample(text.strip(), tuple(ids if finished else ids[:-1]), math.nan, finished))
        return samples

    def _ask(self, body: dict[str, Any], final: int = 0) -> list[tuple[str, bool]]:
        """(text, finished) of one to body["n"] answers; `final`: a status that is not worth a repetition."""

        def call() -> list[tuple[str, bool]]:
            response = self._fetch("chat/completions", body)
            try:
                answers = [(c["message"]["content"], c["finish_reason"] == "stop") for c in response["choices"]]
            except (KeyError, TypeError):
                raise self._failed("gives an answer without choices") from None
            if not all(isinstance(text, str) for text, _ in answers):
                raise self._failed("gives an answer without text")
            if not 1 <= len(answers) <= body["n"]:
                raise self._failed(f"gives {len(answers)} answers where {body['n']} were asked for")
            return answers

        return self._patiently(call, self.config.retries, final)

    def _patiently(self, call: Callable[[], Result], retries: int, final: int = 0) -> Result:
        for attempt in range(retries + 1):
            try:
                return call()
            except _Failed as error:
                if not error.may_pass or error.status == final:
                    raise
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
                if attempt == retries or self._stopped.wait(max(wait, error.wait)):
                    times = f", {attempt + 1} times in a row" if attempt else ""
                    way_out = "see to it, then give the same command again"
                    raise _Failed(f"{error}{times}; {way_out}", error.status) from error
        raise AssertionError

    def _fetch(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that the server answers to one request."""
        headers = {"Content-Type": "application/json"}
        if self.config.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.config.api_key_env].strip()}"
        data = None if body is None else json.dumps(body).encode()
        try:
            try:
                response = urlopen(Request(f"{self.url}/{path}", data, headers), timeout=self.config.timeout)
            except HTTPError as error:  # an answer too
                response = error
            with response:
                status, text = int(response.status), response.read()
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._failed(f"does not answer within {self.config.timeout:g} seconds") from error
            raise self._failed(f"cannot be reached ({reason})") from error
        if status >= 400:
            seconds = response.headers.get("Retry-After", "")
            said = " ".join(text.decode(errors="replace").split())[:200]
            way_out = "; name its key with server.api_key_env" if status in (401, 403) else ""
            wait = min(LONGEST_WAIT, float(seconds)) if seconds.isdigit() else 0.0
            raise self._failed(f"answers {status} ({said}){_to_prompt(body)}{way_out}", status, wait)
        try:
            return json.loads(text)
        except ValueError:
            raise self._failed("gives an answer that is not JSON") from None

    def _failed(self, what: str, status: int | None = None, wait: float = 0.0) -> _Failed:
        return _Failed(f"server: {self.url} {what}", status, wait)


def _seed(seed: int, key: int, index: int) -> int:
    """31 bits, which every server takes: of the request whose first answer is sample `index` of prompt `key`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key} {index}".encode()).digest()[:4], "big") >> 1


def _to_prompt(body: dict[str, Any] | None) -> str:
    return f" to the prompt {body['messages'][-1]['content'][:60]!r}" if body else ""
