"""K answers a prompt from a server with OpenAI's chat completions: vllm, SGLang, llama.cpp, `transformers serve`.

They differ in the names of what OpenAI's protocol lacks (top-k), in the name of the longest answer and in whether they
draw K answers a request: one request for one token finds that out. Each has defaults of its own (llama.cpp: top-k 40
and min-p 0.05; `transformers serve`: greedy), so everything that shapes the distribution is sent. Light: no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.http_client import JsonClient, RequestFailed, WrongAnswer, check_url, key_from
from rlhf.sampling.protocol import Sample, SamplingParams

if TYPE_CHECKING:
    from rlhf.conversation import Renderer

LONGEST_TOKEN = 128  # characters: no vocabulary has a longer one (Llama 3's: 128 spaces)
SHAPE = ("top_k", "min_p", "repetition_penalty")  # fields that OpenAI's own protocol lacks
SILENT_ANSWERS = 8  # answers without text at the start that are taken for the server's way
WHY_SILENT = "only reasoning that it keeps apart; start it without its reasoning parser, or raise max_new_tokens"
Answers = list[tuple[str | None, bool]]  # (text, finished); None: only reasoning


@dataclass(frozen=True)
class ServerConfig:
    """A server that answers in place of the policy's weights.

    Args:
        url: its address with the version, for instance http://localhost:8000/v1.
        model: the policy's name there, as `<url>/models` lists it.
        api_key_env: environment variable that holds the key; null: the server asks for none.
        concurrency: requests at a time, of each process.
        timeout: seconds until a request counts as failed, from connecting to the answer's last byte.
        retries: repetitions of a failed request, after 1, 2, 4 .. 60 seconds.
        seeds: send a seed with every request; off for servers that cannot draw from one.
    """

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 8
    seeds: bool = True

    def __post_init__(self) -> None:
        check_url("url", self.url)
        if self.concurrency < 1:
            raise InputError(f"concurrency: must be at least 1, got {self.concurrency}")
        if not 0 < self.timeout < math.inf:
            raise InputError(f"timeout: must be above 0 seconds, got {self.timeout}")
        if self.retries < 0:
            raise InputError(f"retries: must be 0 or above, got {self.retries}")
        if self.api_key_env is not None:
            key_from(self.api_key_env)


class ServerSampler:
    """A StreamingSampler over a server.

    A sample's seed is a function of (params.seed, key, index) here too, but whether the same seed draws the same answer
    is the server's affair. A Sample's token_ids are those of its text as `renderer` tokenizes it, which need not be the
    ones drawn; its logprob is NaN: servers do not agree on whether theirs are taken before or after the temperature.
    An answer longer than params.max_new_tokens is cut there and not finished. One whose tokens all went into reasoning
    that the server keeps apart is empty; a server whose first answers are all so is refused. How many there were of
    both is said on standard error.

    Args:
        config: where, and with what patience.
        renderer: of the policy's tokenizer; None where only texts are wanted (a judge): samples have no token_ids.
        who: what the server is called in sentences, by its field: "server", "judge".
    """

    def __init__(self, config: ServerConfig, renderer: Renderer | None = None, who: str = "server") -> None:
        self.config, self.renderer, self.who = config, renderer, who

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
        c = self.config
        quiet = len(prompts) <= c.concurrency or os.environ.get("LOCAL_RANK", "0") != "0"
        with JsonClient(
            c.url,
            who=self.who,
            api_key_env=c.api_key_env,
            timeout=c.timeout,
            retries=c.retries,
            concurrency=c.concurrency,
        ) as client:
            chat = _Chat(client, c, num_samples, params)
            futures = {
                client.start(partial(chat.answers, prompt, num_samples, (params.seed, key))): i
                for i, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
            }
            failure: BaseException | None = None
            came, silent, cut = 0, 0, 0
            held: list[tuple[int, list[Sample]]] = []  # until an answer has a text
            with tqdm(total=len(prompts), desc="sampling", unit="prompt", disable=quiet, leave=False) as progress:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if error is None:
                        answers = future.result()
                        samples, too_long = self._samples(prompts[futures[future]], answers, params.max_new_tokens)
                        came, cut = came + len(answers), cut + too_long
                        silent += sum(text is None for text, _ in answers)
                        held.append((futures[future], samples))
                        if silent < came:
                            yield from held
                            held.clear()
                        elif came >= SILENT_ANSWERS or progress.n + 1 == len(prompts):
                            error = InputError(f"{self.who}: {client.url} gives answers without text, {WHY_SILENT}")
                    if error is not None and failure is None:
                        failure = error
                        client.drain()
                    progress.update()
        for count, what in (
            (cut, f"were longer than max_new_tokens {params.max_new_tokens}, which it does not keep to, and were cut"),
            (silent, f"have no text, {WHY_SILENT}"),
        ):
            if count:
                print(f"{self.who}: {count} of {came} answers of {client.url} {what}", file=sys.stderr)
        if failure is not None:
            raise failure

    def _samples(self, prompt: Conversation, answers: Answers, most: int) -> tuple[list[Sample], int]:
        """Samples of a prompt's answers, each of `most` tokens at most, and how many had more."""
        longest = most * LONGEST_TOKEN
        kept = [((text or "")[:longest], finished, len(text or "") > longest) for text, finished in answers]
        if self.renderer is None:
            rows: list[tuple[int, ...]] = [()] * len(kept)
        else:
            talks: list[Conversation] = [[*prompt, {"role": "assistant", "content": text}] for text, _, _ in kept]
            dialogues = self.renderer.dialogues(talks, train="last")
            rows = [tuple(t for t, own in zip(d.input_ids, d.loss_mask, strict=True) if own) for d in dialogues]
        samples, cut = [], 0
        for (text, finished, too_long), ids in zip(kept, rows, strict=True):
            ids = ids if finished and not too_long else ids[:-1]
            if self.renderer is not None and len(ids) > most:
                ids, too_long = ids[:most], True
                text = self.renderer.answer_text(ids)
            cut += too_long
            samples.append(Sample(text.strip(), ids, math.nan, finished and not too_long))
        return samples, cut


class _Chat:
    """Chat completions of one model in the words of its server, which are found out first.

    Raises:
        InputError: the server does not serve the model, or refuses a request in all words known here.
    """

    def __init__(self, client: JsonClient, config: ServerConfig, num_samples: int, params: SamplingParams) -> None:
        self._client, self._config = client, config
        self._length = "max_tokens"  # how this server calls the longest answer
        self._require_model()
        self._request = self._agreed_request(num_samples, params)

    def _require_model(self) -> None:
        def read(listing: Any) -> list[str]:
            try:
                return [str(model["id"]) for model in listing["data"]]
            except (KeyError, TypeError):
                raise WrongAnswer("gives no list of models at /models; is url the one that ends in /v1?") from None

        served = self._client.ask_now("models", read=read, retries=min(2, self._config.retries))
        if self._config.model not in served:
            some = ", ".join(name[:80] if name.isprintable() else ascii(name)[:80] for name in served[:10])
            more = f" and {len(served) - 10} more" if len(served) > 10 else ""
            raise InputError(
                f"{self._client.who}: {self._client.url} does not serve {self._config.model!r} but "
                f"{some or 'no model'}{more}; set {self._client.who}.model, or start the server with that model"
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
        if params.stop:
            request["stop"] = list(params.stop)
        while True:
            probe = request | {self._length: 1, "messages": [{"role": "user", "content": "Hello"}]}
            try:
                self._client.ask_now(**self._asked(probe, seed=0), final=500 if request["n"] > 1 else 0)
                return request
            except RequestFailed as error:  # 500: llama.cpp's answer to n > 1, until 2025
                if error.status in (400, 422) and "max_tokens" in request and "max_completion_tokens" in error.said:
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
                else:
                    raise

    def _asked(self, request: dict[str, Any], seed: int) -> dict[str, Any]:
        """Arguments of the client's `ask`."""
        body = request | {"seed": seed} if self._config.seeds else request
        about = f" to the prompt {body['messages'][-1]['content'][:60]!r}"
        return {
            "path": "chat/completions",
            "body": body,
            "about": about,
            "read": lambda answer: read_answers(answer, body["n"]),
        }

    async def answers(self, prompt: Conversation, num_samples: int, seed: tuple[int, int]) -> Answers:
        """A prompt's answers, in as many requests as the server needs."""
        messages = [{"role": m["role"], "content": m["content"].strip()} for m in prompt]
        answers: Answers = []
        while len(answers) < num_samples:
            n = min(self._request["n"], num_samples - len(answers))
            request = self._request | {"messages": messages, "n": n}
            answers += await self._client.ask(**self._asked(request, _seed(*seed, len(answers))))
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
        thought = any(message.get(name) for name in ("reasoning_content", "reasoning"))
        if text is None and (thought or reason == "length"):
            answers.append((None, reason == "stop"))
        elif isinstance(text, str):
            answers.append((text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), reason == "stop"))
        else:
            raise WrongAnswer("gives an answer without text" + ", a call of tools" * ("tool_calls" in message))
    return answers


def _seed(seed: int, key: int, index: int) -> int:
    """31 bits, which every server takes: of the request whose first answer is sample `index` of prompt `key`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key} {index}".encode()).digest()[:4], "big") >> 1
