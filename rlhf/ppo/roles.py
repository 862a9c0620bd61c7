"""The five roles of PPO behind one interface: policy, reference, value, helpfulness, safety.

`SeparateRoles` holds a model for each: policy and value are trained whole; reference and reward models are frozen, and
partitioned or offloaded under ZeRO-3 as the trained ones are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.conversation import Conversation, Renderer
from rlhf.models.checkpoint.context import TooLong
from rlhf.models.ending import say_how_to_draw
from rlhf.models.packing import enable_packing
from rlhf.models.policy import save_policy
from rlhf.ppo.model import PolicyAndValue, answer_logprobs
from rlhf.rewards.protocol import RewardFunction
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Batch, Stepper
from rlhf.training.whole import WholeModel, prepare_frozen


class Roles(Protocol):
    """Who plays what. The batches are those of `rlhf.ppo.experience.collate`.

    Args:
        policy: what a sampler takes, bare; under ZeRO-3 its weights are there within `gathered()` alone.
        helpfulness, safety: raw scores; each may have a tokenizer of its own. Reward models were loaded with the
            accelerator. safety None: there is no safety model.
    """

    policy: Any
    helpfulness: RewardFunction
    safety: RewardFunction | None

    def prepare(self, optimizer: OptimizerConfig, temperature: float = 1.0) -> Stepper:
        """Called once, before all else: what trains policy and value, its model a `PolicyAndValue` or one alike.

        Args:
            temperature: that answers are drawn at. Policy and reference are their distributions at it (decision 58),
                and what is saved says so.
        """
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
        reference: PreTrainedModel,
        value: nn.Module | None,
        helpfulness: RewardFunction,
        safety: RewardFunction | None,
        accelerator: Accelerator,
    ) -> None:
        self.helpfulness, self.safety = helpfulness, safety
        self._accelerator = accelerator
        self._whole = WholeModel(policy, accelerator)
        self.policy = self._whole.model
        self._source = policy
        self._trained = PolicyAndValue(policy, value)
        self._reference: nn.Module = reference
        self._reference_packs = enable_packing(reference)

    def prepare(self, optimizer: OptimizerConfig, temperature: float = 1.0) -> Stepper:
        self._trained.temperature = temperature
        say_how_to_draw(self._source, temperature)
        stepper = Stepper(self._trained, optimizer, self._accelerator, name="ppo")
        self._reference = prepare_frozen(self._reference, self._accelerator)
        return stepper

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        packed = batch["packed"] if self._reference_packs else None
        with self._accelerator.autocast():
            return answer_logprobs(self._reference, batch, packed, temperature=self._trained.temperature)[0]

    @contextmanager
    def gathered(self) -> Iterator[Any]:
        with self._whole.gathered() as model, self._accelerator.autocast():
            yield model

    def save_policy(self, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
        save_policy(self._source, tokenizer, folder, self._accelerator)


class WholeSampler:
    """Samples from the policy in the precision that it trains in; its weights are gathered for the call and freed
    after it, before answers are scored.

    Every process must call it together.
    """

    def __init__(self, roles: Roles, renderer: Renderer, rows: int | None, too_long: TooLong = "cut") -> None:
        self._roles, self._renderer, self._rows, self._too_long = roles, renderer, rows, too_long

    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """See `rlhf.sampling.protocol.Sampler`."""
        with self._roles.gathered() as model:
            sampler = InProcessSampler(model, self._renderer, self._rows, too_long=self._too_long)
            return sampler.sample(prompts, num_samples, params, keys)
