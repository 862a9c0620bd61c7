"""DPO on preference pairs: both answers' log-probabilities under the policy, against those of a frozen reference.

The reference's log-probabilities are computed once, before the training, so that one model is in memory (arXiv
2305.18290, equation 7). A pair weighs the same whatever its answers' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.conversation import Rendered, Renderer
from rlhf.data.rows import Preference
from rlhf.finetuning.supervised import answer_task
from rlhf.models.checkpoint.context import TooLongRow
from rlhf.models.logprobs import score_rows
from rlhf.objectives.dpo import dpo_loss, implicit_reward
from rlhf.rewards.distributed import deal_out
from rlhf.rewards.training.pairs import render_pairs
from rlhf.training.loop import Task
from rlhf.training.step import Batch


@dataclass(frozen=True)
class DPOPair:
    """A preference as ids, the loss on its last answers alone; the reference's log-probabilities of both
    answers. `cut`: it has lost its oldest turns."""

    chosen: Rendered
    rejected: Rendered
    reference: tuple[float, float] = (0.0, 0.0)
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens of the longer dialogue."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))


def dpo_pairs(
    preferences: Sequence[Preference],
    renderer: Renderer,
    max_length: int,
    too_long: TooLongRow = "cut",
    name: str = "preferences",
) -> list[DPOPair]:
    """The pairs as ids of at most `max_length`; oldest turns are dropped from both sides alike.

    Args:
        renderer: without a limit of its own.
        too_long: what becomes of a longer pair; what is left out is said on stderr.
        name: for messages.
    """
    pairs = render_pairs(preferences, renderer, max_length, too_long, name, thoughts=True)
    kept = [pair.preference for pair in pairs]
    chosen = renderer.dialogues([row.conversation("chosen") for row in kept], "last")
    rejected = renderer.dialogues([row.conversation("rejected") for row in kept], "last")
    return [DPOPair(a, b, cut=pair.cut) for a, b, pair in zip(chosen, rejected, pairs, strict=True)]


def with_reference(
    pairs: Sequence[DPOPair], reference: PreTrainedModel, pad_id: int, accelerator: Accelerator
) -> list[DPOPair]:
    """The pairs with the reference's log-probabilities, in the precision that trains. Called by all processes with the
    same pairs."""
    rows = [_parted(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    with accelerator.autocast():
        sums = deal_out(
            rows, lambda part: [row.double().sum().item() for row in score_rows(reference, part, pad_id)], accelerator
        )
    return [
        replace(pair, reference=(chosen, rejected))
        for pair, chosen, rejected in zip(pairs, sums[::2], sums[1::2], strict=True)
    ]


def _parted(row: Rendered) -> tuple[list[int], list[int]]:
    """What stands before the trained tokens, and they."""
    first, last = row.loss_mask.index(True), len(row.loss_mask) - row.loss_mask[::-1].index(True)
    return list(row.input_ids[:first]), list(row.input_ids[first:last])


def dpo_task(beta: float, pad_id: int) -> Task[DPOPair]:
    """What `rlhf.training.loop.train` needs: 2n rows per forward pass, chosen first; a pair weighs 1.

    Logged a step, means over its pairs: accuracy of the implicit rewards (a tie is half), chosen_reward and
    rejected_reward.
    """
    answers = answer_task(pad_id)

    def collate(pairs: Sequence[DPOPair]) -> Batch:
        batch = answers.collate([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
        sides = zip(*(pair.reference for pair in pairs), strict=True)
        return batch | {"reference": torch.tensor([value for side in sides for value in side], dtype=torch.float32)}

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        reference, rows = batch["reference"], batch["rows"]
        logprobs = model(**{name: found for name, found in batch.items() if name != "reference"})
        sums = torch.zeros_like(reference).index_add(0, rows, logprobs)
        chosen, rejected = implicit_reward(sums, reference, beta).chunk(2)
        figures = {
            "accuracy": (0.5 + 0.5 * (chosen - rejected).sign()).sum().detach(),
            "chosen_reward": chosen.sum().detach(),
            "rejected_reward": rejected.sum().detach(),
        }
        return dpo_loss(chosen, rejected).sum(), figures

    return Task(collate=collate, loss=loss, weight=lambda pair: 1.0, length=lambda pair: pair.length)
