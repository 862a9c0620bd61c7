"""The scores of both answers of preference rows: computed once, read by every figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.conversation import Conversation
from rlhf.data.rows import Preference
from rlhf.models.batching import batches_by_length, pad_rows
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.scoring import RewardModelFunction, check_scores, name_of


class PairScore(NamedTuple):
    """Raw scores of both answers, and the safety head's logits (above 0: safe) where the model has such a head."""

    chosen: float
    rejected: float
    chosen_logit: float | None = None
    rejected_logit: float | None = None

    @property
    def difference(self) -> float:
        """By how much the chosen answer leads."""
        return self.chosen - self.rejected

    @property
    def hit(self) -> float:
        """1 where the chosen answer scores higher, 0 where the rejected one does, 0.5 for a tie."""
        return 0.5 + 0.5 * ((self.chosen > self.rejected) - (self.chosen < self.rejected))


def score_pairs(reward: RewardFunction, preferences: Sequence[Preference]) -> list[PairScore]:
    """One call of the reward function for all answers; a reward model with a safety head gives both from one pass.

    Raises:
        InputError: the reward function gave scores of wrong shape or not finite.
    """
    n = len(preferences)
    if not n:
        return []
    conversations = [row.conversation(which) for which in ("chosen", "rejected") for row in preferences]
    logits: list[float] | list[None] = [None] * (2 * n)
    if isinstance(reward, RewardModelFunction) and reward.model.safety_head is not None:
        answer, safety = _both_heads(reward, conversations)
        logits = safety.tolist()
    else:
        answer = reward(conversations)
    scores = check_scores(answer, 2 * n, name_of(reward)).tolist()
    return [PairScore(scores[i], scores[n + i], logits[i], logits[n + i]) for i in range(n)]


@torch.inference_mode()
def _both_heads(reward: RewardModelFunction, conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor]:
    """Score and safety logit of each conversation, each (n,) float32 on the CPU."""
    rows = [rendered.input_ids for rendered in reward.renderer.dialogues(conversations)]
    scores, logits = torch.zeros(len(rows)), torch.zeros(len(rows))
    for batch in batches_by_length([len(row) for row in rows], reward.batch_tokens):
        ids, mask = pad_rows([rows[i] for i in batch], 0)
        output = reward.model(ids.to(reward.model.device), mask.to(reward.model.device))
        assert output.safety_logit is not None
        scores[batch], logits[batch] = output.score.cpu(), output.safety_logit.cpu()
    return scores, logits
