"""Reward functions of one's own, to copy from: a class, an object, and a client of a model that is served elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from rlhf.conversation import Conversation
from rlhf.http_client import JsonClient, WrongAnswer, check_url


class Brevity:
    """0 for an answer of ten words or fewer, -0.1 for each word more."""

    def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        words = torch.tensor([len(conversation[-1]["content"].split()) for conversation in conversations])
        return -0.1 * (words - 10).clamp(min=0).float()


class Matches:
    """1 for an answer in which the pattern is found, else 0."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        return torch.tensor([float(bool(self.pattern.search(c[-1]["content"]))) for c in conversations])


ends_a_sentence = Matches(r"[.!?]\s*$")


class Served:
    """A reward model behind HTTP: POST {"conversations": [...]}, answered by {"scores": [...]}, one for each.

    Args:
        url: of the server; without one, the environment variable REWARD_URL.
        rows: conversations a request.
        timeout: seconds for a request as a whole.
        retries: repetitions of a failed request, after 1, 2, 4 … seconds.
        api_key_env: environment variable that holds the server's key; None: it asks for none.
    """

    def __init__(
        self,
        url: str | None = None,
        rows: int = 64,
        timeout: float = 60.0,
        retries: int = 3,
        api_key_env: str | None = None,
    ) -> None:
        url = url or os.environ.get("REWARD_URL", "")
        check_url("REWARD_URL", url)
        self.rows = rows
        self._client = partial(
            JsonClient, url, who="reward server", timeout=timeout, retries=retries, api_key_env=api_key_env
        )

    def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        starts = range(0, len(conversations), self.rows)
        with self._client() as client:
            scores = [_ask(client, conversations[start : start + self.rows]) for start in starts]
        return torch.cat(scores)


def _ask(client: JsonClient, conversations: Sequence[Conversation]) -> torch.Tensor:
    n = len(conversations)

    def read(answer: Any) -> torch.Tensor:
        try:
            scores = torch.tensor(answer["scores"], dtype=torch.float32)
            if any(isinstance(score, bool) for score in answer["scores"]):  # what is true of it, nothing says
                scores = torch.empty(0)
        except (ValueError, TypeError, KeyError, RuntimeError, OverflowError):
            scores = torch.empty(0)
        if scores.shape != (n,) or not scores.isfinite().all():
            raise WrongAnswer(f'does not answer {{"scores": […]}}, a finite number for each of {n} conversations')
        return scores

    scores: torch.Tensor = client.ask_now("", {"conversations": list(conversations)}, read=read)
    return scores
