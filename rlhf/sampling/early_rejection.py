"""Early rejection: give up a prompt's unpromising answers while they are being written (arXiv 2410.20290).

Best-of-K throws K - 1 answers away; most of them can be told from their beginning. After given numbers of tokens a
reward function scores the parts so far, and the worst share of each prompt's rows is dropped: their places go to other
prompts. Where it departs from the paper: rows are dropped at fixed lengths and not when memory runs out, so that which
rows are dropped depends on no batch size. Lost are the answers that would have begun badly and ended best. Light: no
torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.conversation import says_nothing
from rlhf.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

ScoreParts = Callable[[Sequence[int], Sequence[str]], "Tensor"]


@dataclass(frozen=True)
class EarlyRejectionConfig:
    """When rows are dropped, and how many.

    Args:
        at: after this many tokens of the answer.
        drop: share of a prompt's rows that are still being written then, rounded down.
    """

    at: tuple[int, ...] = (16, 32)
    drop: float = 0.5

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 1:
            raise InputError(f"at: must name numbers of tokens, at least 1 each, got {list(self.at)}")
        if not 0 < self.drop < 1:
            raise InputError(f"drop: must lie between 0 and 1, got {self.drop}")


class EarlyRejection:
    """Chooses the rows to drop.

    Args:
        config: when and how many.
        score: prompts' keys (positions in the whole list of prompts, unless the caller named others) and the texts of
            their answers so far, both of length n -> (n,) rewards, higher is better.
    """

    def __init__(self, config: EarlyRejectionConfig, score: ScoreParts) -> None:
        self.config = config
        self.score = score

    def choose(self, keys: Sequence[int], texts: Sequence[str]) -> list[int]:
        """Which of these rows to drop, by number: of each key's rows the worst; of equally good ones the later.

        A part without text is worse than any other, and is not scored.

        Raises:
            InputError: the score of a part is not one finite number.
        """
        spoken = [row for row, text in enumerate(texts) if not says_nothing(text)]
        values = [-math.inf] * len(texts)
        if spoken:
            rewards = self.score([keys[row] for row in spoken], [texts[row] for row in spoken])
            if rewards.shape != (len(spoken),) or not rewards.isfinite().all():
                raise InputError(
                    "early rejection: the reward function must give one finite number for each part of an answer"
                )
            for row, reward in zip(spoken, rewards.tolist(), strict=True):
                values[row] = reward
        rows: dict[int, list[int]] = defaultdict(list)
        for row, key in enumerate(keys):
            rows[key].append(row)
        rejected = []
        for some in rows.values():
            worst_first = sorted(some, key=lambda row: (values[row], -row))
            rejected += worst_first[: math.floor(self.config.drop * len(some))]
        return sorted(rejected)
