"""The five roles of PPO behind one interface: policy, reference, value, helpfulness, safety.

`SeparateRoles` holds a model for each: policy and value are trained whole; the reference is frozen, and partitioned or
offloaded under ZeRO-3 as the trained ones are.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf.models.policy import save_policy
from rlhf.models.shared_prefix import enable_packing
from rlhf.ppo.model import PolicyAndValue, answer_logprobs, pack_batch
from rlhf.rewards.protocol import RewardFunction
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Batch, Stepper
from rlhf.training.whole import WholeModel, prepare_frozen


class Roles(Protocol):
    """Who plays what. The batches are those of `rlhf.ppo.experience.collate`.

    Args:
        policy: what a sampler takes, bare; its weights are there within `gathered()` alone.
        helpfulness, safety: raw scores; each may have a tokenizer of its own.
    """

    policy: Any
    helpfulness: RewardFunction
    safety: RewardFunction

    def prepare(self, optimizer: OptimizerConfig) -> Stepper:
        """Called once, before all else: what trains policy and value, its model a `PolicyAndValue` or one alike."""
        ...

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """(n, A) float32 log-probability of each answer token under the frozen start, 0 off the mask; no gradient."""
        ...

    def gathered(self) -> AbstractContextManager[Any]:
        """`policy`, whole and ready to sample; every process enters and leaves together."""
        ...

    def save_policy(self, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """A checkpoint that is whole; every process calls it."""
        ...


class SeparateRoles:
    """A model for each role.

    Args:
        policy: causal LM, trained in place, whole or with an adapter.
        reference: a frozen copy of where the policy started.
        value: a `RewardModel`, read at every token and trained in place; None: no value is learnt.
        helpfulness, safety: see `Roles`.
        accelerator: prepares what is trained and what is frozen.
    """

    def __init__(
        self,
        policy: Any,
        reference: nn.Module,
        value: nn.Module | None,
        helpfulness: RewardFunction,
        safety: RewardFunction,
        accelerator: Accelerator,
    ) -> None:
        self.helpfulness, self.safety = helpfulness, safety
        self._accelerator = accelerator
        self._whole = WholeModel(policy, accelerator)
        self.policy = self._whole.model
        self._source = policy
        self._trained = PolicyAndValue(policy, value)
        self._reference = reference
        self._reference_packs = enable_packing(reference)

    def prepare(self, optimizer: OptimizerConfig) -> Stepper:
        stepper = Stepper(self._trained, optimizer, self._accelerator, name="ppo")
        self._reference = prepare_frozen(self._reference, self._accelerator)
        return stepper

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        packed = pack_batch(batch) if self._reference_packs else None
        with self._accelerator.autocast():
            return answer_logprobs(self._reference, batch, packed)[0]

    def gathered(self) -> AbstractContextManager[Any]:
        return self._whole.gathered()

    def save_policy(self, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
        save_policy(self._source, tokenizer, folder, self._accelerator)
