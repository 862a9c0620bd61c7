"""K answers per prompt from a server with OpenAI's chat completions. Light: no torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rlhf.conversation import Conversation, split_thoughts
from rlhf.conversation.messages import THOUGHT_CLOSES, THOUGHT_OPENS
from rlhf.errors import InputError
from rlhf.http_client import RequestFailed, completed
from rlhf.sampling.chat import Answers, ServerConfig, open_chat
from rlhf.sampling.protocol import Sample, SamplingParams, StreamingSampler
from rlhf.stage.progress import progress_bar

if TYPE_CHECKING:
    from rlhf.conversation import Renderer
    from rlhf.sampling.opening import Opening
    from rlhf.sampling.source import PolicySource

LONGEST_TOKEN = 128  # characters: no vocabulary has a longer one (Llama 3's: 128 spaces)
SILENT_ANSWERS = 8  # answers without text at the start that are taken for the server's way
WHY_SILENT = "only reasoning that it keeps apart; start it without its reasoning parser, or raise max_new_tokens"


class ServerSampler(StreamingSampler):
    """Draws from a server.

    A sample's seed is a function of (params.seed, key, index) here too, but whether the same seed draws the same answer
    is the server's affair. A Sample's token_ids are those of its text as `renderer` tokenizes it, which need not be the
    ones drawn; its logprob is NaN: servers do not agree on whether theirs are taken before or after the temperature.
    An answer longer than params.max_new_tokens is cut there and not finished. One whose tokens all went into reasoning
    that the server keeps apart is empty; a server whose first answers are all so is refused. How many there were of
    both is said on standard error.

    Args:
        config: where, and with what patience.
        renderer: of the policy's tokenizer; None where only texts are wanted (a judge): samples have no token_ids.
        who: what the server is called in sentences, by its field: "policy.server", "judge".
        passes_over: a prompt that the server refuses (one longer than its context, for instance) gets empty answers
            that are not finished, and is counted; where it refuses all of them, it fails as otherwise.
    """

    def __init__(
        self, config: ServerConfig, renderer: Renderer | None = None, who: str = "server", passes_over: bool = False
    ) -> None:
        self.config, self.renderer, self.who, self.passes_over = config, renderer, who, passes_over

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
        came, silent, cut, refused = 0, 0, 0, 0
        held: list[tuple[int, list[Sample]]] = []  # until an answer has a text
        with open_chat(c, num_samples, params, self.who) as chat:
            ask = chat.answers_unless_refused if self.passes_over else chat.answers
            asked = enumerate(zip(prompts, keys, strict=True))
            jobs = {chat.client.start(partial(ask, prompt, key)): i for i, (prompt, key) in asked}
            with progress_bar(len(prompts), "sampling", "prompt") as progress:
                for done, (i, answers) in enumerate(completed(jobs, chat.client), start=1):
                    progress.update()
                    if isinstance(answers, RequestFailed):
                        refused += 1
                        held.append((i, [Sample("", (), math.nan, False)] * num_samples))
                        if refused == len(prompts):
                            raise answers
                    else:
                        samples, too_long = self._samples(prompts[i], answers, params.max_new_tokens)
                        came, cut = came + len(answers), cut + too_long
                        silent += sum(text is None for text, _ in answers)
                        held.append((i, samples))
                    if silent < came:
                        yield from held
                        held.clear()
                    elif came >= SILENT_ANSWERS or done == len(prompts):
                        raise InputError(f"{self.who}: {c.place} gives answers without text, {WHY_SILENT}")
        for count, what in (
            (cut, f"were longer than max_new_tokens {params.max_new_tokens}, which it does not keep to, and were cut"),
            (silent, f"have no text, {WHY_SILENT}"),
        ):
            if count:
                print(f"{self.who}: {count} of {came} answers of {c.place} {what}", file=sys.stderr)
        if refused:
            print(f"{self.who}: {c.place} refused {refused} of {len(prompts)} prompts", file=sys.stderr)

    def _samples(self, prompt: Conversation, answers: Answers, most: int) -> tuple[list[Sample], int]:
        """Samples of a prompt's answers, each of `most` tokens at most, and how many had more."""
        longest = most * LONGEST_TOKEN
        texts = [(_opened(text or ""), finished) for text, finished in answers]
        kept = [(text[:longest], finished, len(text) > longest) for text, finished in texts]
        if self.renderer is None:
            rows: list[tuple[int, ...]] = [()] * len(kept)
        else:
            talks: list[Conversation] = [[*prompt, {"role": "assistant", "content": text}] for text, _, _ in kept]
            dialogues = self.renderer.dialogues(talks, train="last")
            rows = [tuple(t for t, own in zip(d.input_ids, d.loss_mask, strict=True) if own) for d in dialogues]
        samples, cut = [], 0
        for (given, finished, too_long), ids in zip(kept, rows, strict=True):
            thoughts, text = split_thoughts(given)
            ids = ids if finished and not too_long else ids[:-1]
            if self.renderer is not None and len(ids) > most:
                ids, too_long = ids[:most], True
                text, thoughts = self.renderer.answer(ids)
            cut += too_long
            whole = finished and not too_long
            samples.append(Sample(text.strip(), ids, math.nan, whole, thoughts=thoughts))
        return samples, cut


def _opened(text: str) -> str:
    """An answer whose thoughts the prompt opened, as DeepSeek-R1's does, with their beginning."""
    is_open = THOUGHT_CLOSES in text and not text.lstrip().startswith(THOUGHT_OPENS)
    return f"{THOUGHT_OPENS}\n{text}" if is_open else text


def open_server(source: PolicySource, opening: Opening) -> ServerSampler:
    """The backend server of `rlhf.sampling.source`."""
    assert source.server is not None, "checked before"
    if opening.early_rejection is not None:
        raise InputError("early_rejection: a server gives whole answers only; leave one of the two out")
    return ServerSampler(source.server, opening.renderer, f"{opening.field}.server")
