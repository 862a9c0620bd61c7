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
from rlhf.rewards.distributed import agreement
from rlhf.rewards.ensembles import RewardEnsemble
from rlhf.rewards.foreign import ForeignReward
from rlhf.rewards.loading import load_reward
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.scoring import RewardModelFunction
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.training.accelerator import frozen_dtype
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Batch, Stepper
from rlhf.training.whole import WholeModel, divide, holds_4_bit, is_partitioned, prepare_frozen, settle


class Roles(Protocol):
    """Who plays what. The batches are those of `rlhf.ppo.experience.collate`.

    Args:
        policy: what a sampler takes, bare; under ZeRO-3 its weights are there within `gathered()` alone.
        helpfulness, safety: raw scores; each may have a tokenizer of its own. safety None: there is no safety model.
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
        self.helpfulness = partitioned(self.helpfulness, self._accelerator)
        if self.safety is not None:
            self.safety = partitioned(self.safety, self._accelerator)
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


def load_judge(spec: str | os.PathLike[str], accelerator: Accelerator) -> RewardFunction:
    """A reward function (`rlhf.rewards.loading.load_reward`), which `partitioned` takes later.

    Under ZeRO-3 its reward models' weights are divided, so that the next model is not loaded beside whole ones. Every
    process calls it.
    """
    device = "cpu" if is_partitioned(accelerator) else accelerator.device  # whole, it may not fit the device
    judge = load_reward(spec, device=device, dtype=frozen_dtype(accelerator.device))
    for member in judge.members if isinstance(judge, RewardEnsemble) else [judge]:
        if isinstance(member, RewardModelFunction) and not holds_4_bit(member.model):
            divide(member.model, accelerator)
    return judge


def partitioned(judge: RewardFunction, accelerator: Accelerator) -> RewardFunction:
    """The same scores; called when the trained model is prepared, outside ZeRO-3 for nothing.

    A reward model, alone or in an ensemble, becomes a `PartitionedReward`. One in 4 bit or of another kind, which are
    not divided, goes to the device.
    """
    if not is_partitioned(accelerator):
        return judge
    if isinstance(judge, RewardEnsemble):
        judge.members = [partitioned(member, accelerator) for member in judge.members]
    if isinstance(judge, ForeignReward):
        judge.to(accelerator.device)
    if isinstance(judge, RewardModelFunction) and holds_4_bit(judge.model):
        judge.model.to(accelerator.device)
    elif isinstance(judge, RewardModelFunction):
        return PartitionedReward(judge, accelerator)
    return judge


class PartitionedReward:
    """A reward model whose weights ZeRO-3 partitions; each layer's are gathered as it is run, and freed after it.

    Every process must call it together (`rlhf.rewards.distributed.score_answers` does, with all the reward functions in
    one order), or the others wait.

    Args:
        function: its model's weights are partitioned here.
    """

    def __init__(self, function: RewardModelFunction, accelerator: Accelerator) -> None:
        self._engine = prepare_frozen(function.model, accelerator)
        function.run_in_step(self._engine, agreement(accelerator))
        self._function = function

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        try:
            return self._function(conversations)
        finally:
            settle(self._engine)

    @property
    def too_long(self) -> list[bool]:
        """See `RewardModelFunction`."""
        return self._function.too_long
