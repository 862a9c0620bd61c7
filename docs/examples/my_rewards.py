"""A reward function of one's own: short answers are better."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf.conversation import Conversation


class Brevity:
    """0 for an answer of ten words or fewer, -0.1 for each word more."""

    def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        words = torch.tensor([len(conversation[-1]["content"].split()) for conversation in conversations])
        return -0.1 * (words - 10).clamp(min=0).float()
