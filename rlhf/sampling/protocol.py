"""What every sampler takes and gives. Light: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from rlhf.conversation import Conversation
from rlhf.errors import InputError


class SamplerGone(InputError):
    """What draws has ended by itself. Of several processes the others draw what it has left."""


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn.

    Args:
        temperature: divides the logits before the softmax; 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches it; 1 keeps all.
        top_k: keep the k likeliest tokens; 0 keeps all.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens that stand in the prompt
            or the answer already, before all others, as in transformers (CTRL, arXiv 1909.05858); 1 is off.
        stop: an answer ends where it has written one of these texts, and is cut before it.
        max_new_tokens: stop here where no end token came.
        seed: with the prompt's position in the call and the sample's index it decides every draw.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: must be 0 (greedy) or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise InputError(f"top_k: must be 0 (off) or above, got {self.top_k}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty: must be above 0 (1 is off), got {self.repetition_penalty}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"stop: must be a list of non-empty texts, got {self.stop!r}")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: must be at least 1, got {self.max_new_tokens}")

    def seeded(self, seed: int) -> SamplingParams:
        """The same with a stage's own seed added to the seed."""
        return replace(self, seed=self.seed + seed)


@dataclass(frozen=True)
class Sample:
    """One drawn answer.

    token_ids include the end token when it came, and the tokens of a stop text; text holds neither. `finished`: one of
    the two came. `thoughts` is what the model thought before it, in token_ids too, and no part of text: whoever judges
    an answer never sees it. `logprob` is the sum over token_ids of the log-probability under the model at temperature 1
    with nothing penalised or cut off (NaN where the sampler does not know it: a server), `sampling_logprob` under the
    distribution that the tokens were drawn from (None: not known), in nats, float32.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finished: bool
    sampling_logprob: float | None = None
    thoughts: str = ""


def before_stop(text: str, stop: Sequence[str]) -> str:
    """An answer's text before the first stop text in it; the whole where there is none."""
    cuts = [text.find(one) for one in stop if one in text]
    return text[: min(cuts)].rstrip() if cuts else text


class Sampler(Protocol):
    """Anything that draws `num_samples` answers for each prompt, in the prompts' order."""

    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """Draw; `keys[i]` stands for position i in the seed of prompts[i]: dealing prompts out changes nothing."""
        ...


@runtime_checkable
class StreamingSampler(Sampler, Protocol):
    """A sampler that gives out each prompt's answers once they are all there, and not at the end."""

    def stream(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """(i, the answers to prompts[i]) of every prompt, in any order."""
        ...

    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """Draw `num_samples` answers for each prompt, all of what `stream` gives out, in the prompts' order."""
        answers = dict(self.stream(prompts, num_samples, params, keys))
        return [answers[i] for i in range(len(prompts))]
