"""What anything that scores answers looks like. Light: no torch at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rlhf.conversation import Conversation

if TYPE_CHECKING:
    from torch import Tensor


class RewardFunction(Protocol):
    """Scores whole conversations whose last message is the assistant's answer."""

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        """Return (n,) float32 raw scores (before the sigmoid); higher is better. Must be finite."""
        ...
