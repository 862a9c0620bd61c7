"""Reward functions of one's own, to copy from: a class, an object, and a client of a model that is served elsewhere."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

import torch

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.rewards.scoring import check_scores


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
        batch_size: conversations a request.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str | None = None, batch_size: int = 64, timeout: float = 60.0) -> None:
        self.url = url or os.environ.get("REWARD_URL", "")
        self.batch_size, self.timeout = batch_size, timeout
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"REWARD_URL: must be the address of a reward server, http://…, got {self.url!r}")

    def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        starts = range(0, len(conversations), self.batch_size)
        return torch.cat([self._ask(conversations[start : start + self.batch_size]) for start in starts])

    def _ask(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        body = json.dumps({"conversations": conversations}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                scores = torch.tensor(json.load(response)["scores"], dtype=torch.float32)
        except (OSError, HTTPException) as error:  # refused, timed out, no such host, an HTTP error, cut off
            raise InputError(f"reward server: {self.url} cannot be asked ({error}); is it running?") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f'reward server: {self.url} must answer {{"scores": [a number a conversation]}} ({error!r})'
            ) from error
        return check_scores(scores, len(conversations), f"reward server {self.url}")
