"""Policy and value as one module: one forward pass, one optimizer, one DeepSpeed engine.

Where a model's attention can take them (`rlhf.models.packing`), a batch's rows are packed: padding is not
computed, answers to one prompt share it, and the last layer and the logits are made for answer tokens alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.models.packing import PackedRows, alone_in_last_layer, enable_packing, pack_rows
from rlhf.objectives.policy import entropy, token_logprobs
from rlhf.training.step import Batch


class PolicyAndValue(nn.Module):
    """A causal LM and a value model (a `RewardModel`, read at every token) with the same token ids.

    Without a value model (None) the values are None. Dropout is turned off in both: a ratio of probabilities under two
    dropout masks means nothing. `temperature` is that of the answers: the policy is its distribution at it.
    """

    def __init__(self, policy: PreTrainedModel, value: nn.Module | None) -> None:
        super().__init__()
        self.policy = policy
        self.value = value
        self.temperature = 1.0
        self.policy_packs = enable_packing(policy)
        head = getattr(value, "safety_head", None)
        if head is not None:
            head.requires_grad_(False)  # takes no part in a value; data parallel waits for its gradient otherwise
        disable_dropout(self)

    def forward(self, batch: Batch, with_entropy: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-probability of each answer token, value before it, entropy (zeros unless asked): (n, A) float32 each."""
        packed = batch["packed"] if self.policy_packs else None
        logprobs, entropies = answer_logprobs(
            self.policy, batch, packed, temperature=self.temperature, with_entropy=with_entropy
        )
        return logprobs, None if self.value is None else answer_values(self.value, batch, packed), entropies

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Trade time for memory in both models."""
        for module in (self.policy, self.value):
            if module is not None:
                module.gradient_checkpointing_enable(**options)  # type: ignore[operator]


def pack_batch(batch: Batch) -> PackedRows:
    """The batch's rows as one, those of a prompt sharing it; read are the tokens before answer tokens.

    Each row is without its last token, which predicts none.
    """
    ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, 1:]
    read = (mask != 0) & (torch.arange(ids.shape[1]) >= batch["start"][:, None] - 1)
    return pack_rows(ids, mask, batch["groups"], read)


def answer_logprobs(
    model: nn.Module,
    batch: Batch,
    packed: PackedRows | None = None,
    *,
    temperature: float,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and entropy of its distribution, zeros unless asked; (n, A), 0 off the mask.

    Logits, and what only they need of the last layer, are made where an answer token is predicted; of padded rows,
    logits from the first such position of the batch.

    Args:
        model: causal LM of transformers, wrapped or not.
        batch: from `rlhf.ppo.experience.collate`: right padded, so positions need no shift.
        packed: the batch's, for a model on which `enable_packing` was true; None: the rows are computed as they are
            padded.
        temperature: that the answers were drawn at; divides the logits.
    """
    ids, mask = batch["input_ids"], batch["mask"]
    if packed is not None:
        with alone_in_last_layer(cast(nn.Module, model.base_model), packed.alone):
            logits = model(**packed.inputs(), logits_to_keep=packed.read).logits[0]
        logprobs = token_logprobs(logits, ids.gather(1, _columns(batch, 0)).take(batch["in_mask"]), temperature)
        entropies = entropy(logits, temperature) if with_entropy else torch.zeros_like(logprobs)
        return _padded(logprobs, batch), _padded(entropies, batch)
    first = int(batch["start"].min())
    rest = ids.shape[1] - first + 1
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=rest).logits[
        :, :-1
    ]
    columns = _columns(batch, first)
    logprobs = token_logprobs(logits, ids[:, first:], temperature).gather(1, columns).masked_fill(~mask, 0.0)
    if not with_entropy:
        return logprobs, torch.zeros_like(logprobs)
    return logprobs, entropy(logits, temperature).gather(1, columns).masked_fill(~mask, 0.0)


def answer_values(value: Any, batch: Batch, packed: PackedRows | None = None) -> Tensor:
    """Value before each answer token is drawn, (n, A) float32, 0 off the mask: read at the token before it.

    Args:
        value: a `RewardModel`; one that cannot take packed rows computes the padded ones.
        packed: as in `answer_logprobs`.
    """
    packed = packed if value.shares_prefixes else None
    ids, attention = (
        batch[name] if packed is None else batch[name][:, :-1] for name in ("input_ids", "attention_mask")
    )
    scores: Tensor = value.token_scores(ids, attention, packed).float()
    return scores.gather(1, _columns(batch, 1)).masked_fill(~batch["mask"], 0.0)


def _columns(batch: Batch, first: int) -> Tensor:
    """(n, A) column of each answer token in a tensor whose column 0 is position `first`; padding gets a valid one."""
    start: Tensor = batch["start"]
    offsets = torch.arange(batch["mask"].shape[1], device=start.device)
    return (start[:, None] - first + offsets).clamp(max=batch["input_ids"].shape[1] - 1 - first)


def _padded(found: Tensor, batch: Batch) -> Tensor:
    """One number for each answer token, row by row -> (n, A), 0 elsewhere; by places, as a mask would be looked at."""
    mask: Tensor = batch["mask"]
    return found.new_zeros(mask.numel()).index_copy(0, batch["in_mask"], found).view_as(mask)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, also those that layers keep as a number under a name of their own, and the noise of
    routers (decision 39)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and any(part in name for part in ("drop", "jitter")):
                setattr(module, name, 0.0)
