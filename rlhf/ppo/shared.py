"""The five roles of PPO as adapters and heads on one base, in about the memory of one model.

The base is loaded once, in 4 bit or not. Policy and value are trained adapters; the reference is the policy's adapter
as it was at the start, frozen, or no adapter at all; each reward model is a frozen adapter with a head. The value
starts as a copy of a reward model's adapter and head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.models.adapters import saved_quantization
from rlhf.models.checkpoint.folder import base_folder, base_quantization, is_adapter_checkpoint, require_policy
from rlhf.models.checkpoint.pretrained import without_values
from rlhf.models.config import AdapterConfig
from rlhf.models.ending import say_how_to_draw, say_how_to_stop
from rlhf.models.packing import enable_packing
from rlhf.models.policy import add_pad_embedding, dtype_of, load_base, load_tokenizer
from rlhf.models.reward_model import RewardModel, RewardOutput
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.model import answer_logprobs, answer_values, disable_dropout
from rlhf.rewards.loading import load_reward
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.scoring import RewardModelFunction, agreement
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Batch, Stepper
from rlhf.training.whole import WholeModel, is_partitioned, refuse_4_bit, settle

POLICY, REFERENCE, VALUE = "policy", "reference", "value"


class SharedPolicyAndValue(nn.Module):
    """What `rlhf.ppo.model.PolicyAndValue` is for two models, for two adapters on one base.

    The value's activations are not kept for the backward pass but computed again there, after the policy's are freed:
    a step holds the activations of one model.
    """

    def __init__(self, base: SharedBase, value: RewardModel | None, reference: str | None) -> None:
        super().__init__()
        self.temperature = 1.0
        self.model = base.model
        self.value_head = value.model.score if value is not None else None
        self._base, self._reference = base, reference
        self._value = [value]  # in a list: its backbone is registered above
        self.policy_packs = enable_packing(base.model)
        self._layers_are_checkpointed = False
        disable_dropout(self)

    def forward(
        self, batch: Batch, with_entropy: bool = False, reference: bool = False, judge: RewardModel | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `PolicyAndValue`; with `reference` the reference's log-probabilities, and no values.

        With `judge`, a reward model over the base, within `using` of its adapter: its scores (B,) of a batch of its
        arguments, and the safety head's logits.
        """
        if judge is not None:
            scores, logits = judge(**batch)
            return scores, logits, torch.zeros_like(scores)
        packed = batch["packed"] if self.policy_packs else None
        values = None
        if not reference and self._value[0] is not None:
            # before the policy: the backward pass comes to the policy first, and frees it, before the value runs again
            values = self._run(VALUE, partial(answer_values, self._value[0], batch, packed))
        with self._base.using(self._reference if reference else POLICY) as model:
            logprobs, entropies = answer_logprobs(
                model, batch, packed, temperature=self.temperature, with_entropy=with_entropy
            )
        return logprobs, values, entropies

    def _run(self, name: str, call: partial[Tensor]) -> Tensor:
        with self._base.using(name):
            if self._layers_are_checkpointed or not torch.is_grad_enabled():
                return call()
            output: Tensor = checkpoint(call, use_reentrant=False, context_fn=self._base.recomputed)
            return output

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Trade time for memory in every layer; a layer that runs again does so in the role it had."""
        options = {**(gradient_checkpointing_kwargs or {}), "context_fn": self._base.recomputed}
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        self._layers_are_checkpointed = True


class SharedRoles:
    """See this file's docstring; `load` makes it from checkpoints.

    Args:
        base: with the trained adapters "policy" and, unless value is None, "value".
        value: made by `base.reward_model`; None: no value is learnt.
        reference: name of a frozen adapter; None: the base alone.
        judges: helpfulness and safety: a checkpoint that is an adapter over this base, already added under the role's
            name, or any other reward function; safety None: there is no safety model.
        accelerator: prepares what is trained.
    """

    def __init__(
        self,
        base: SharedBase,
        value: RewardModel | None,
        reference: str | None,
        judges: dict[Literal["helpfulness", "safety"], Path | RewardFunction | None],
        accelerator: Accelerator,
    ) -> None:
        self._base, self._accelerator = base, accelerator
        self._trained = SharedPolicyAndValue(base, value, reference)
        self._whole = WholeModel(base.model, accelerator)
        self.policy: PreTrainedModel = self._whole.model
        self._whole_base = base if self.policy is base.model else SharedBase(self.policy)
        helpfulness, self.safety = (
            AdapterReward(base, name, judge) if isinstance(judge, Path) else judge
            for name, judge in ((n, judges[n]) for n in ("helpfulness", "safety"))
        )
        assert helpfulness is not None
        self.helpfulness: RewardFunction = helpfulness

    @classmethod
    def load(
        cls,
        policy: Path,
        helpfulness: str | os.PathLike[str],
        safety: str | os.PathLike[str] | None,
        accelerator: Accelerator,
        *,
        value_from: Path | None = None,
        with_value: bool = True,
        adapter: AdapterConfig | None = None,
        quantization: Literal["nf4"] | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ) -> SharedRoles:
        """One base for all.

        Args:
            policy: an adapter over the base, which goes on training and whose start is the reference; or the base
                itself, which gets a new adapter and is the reference.
            helpfulness, safety: see `rlhf.rewards.loading.load_reward`; an adapter over the same base shares it, any
                other is loaded beside. safety None: there is none.
            value_from: an adapter over the base with a score head. Default: helpfulness, where it is one; else a new
                adapter with a new head.
            with_value: whether a value is learnt.
            adapter: size of a new adapter; default: AdapterConfig().
            quantization, dtype: of the base, see `rlhf.models.policy.load_policy`.
            seed: of new adapters and a new head.

        Raises:
            InputError: value_from is not over this base; an adapter was trained over weights of another kind; a base in
                4 bit under ZeRO-3.
        """
        root = base_folder(policy).resolve()
        if is_adapter_checkpoint(policy):
            quantization = saved_quantization(policy, quantization)
        if quantization is not None:
            refuse_4_bit(accelerator)
        of_main = is_partitioned(accelerator) and not accelerator.is_main_process
        base = SharedBase(_load_base(policy, root, quantization, dtype, of_main))
        reference = None
        if is_adapter_checkpoint(policy):
            base.add_saved(POLICY, policy, trained=True)
            base.add_saved(REFERENCE, policy, trained=False)
            reference = REFERENCE
        else:
            base.add_new(POLICY, adapter or AdapterConfig(), root, seed=seed)
        judges: dict[Any, Any] = {}
        for name, spec in (("helpfulness", helpfulness), ("safety", safety)):
            if spec is None:
                judges[name] = None
            elif shares_base(spec, root, quantization):
                base.add_saved(name, Path(spec), trained=False)
                judges[name] = Path(spec)
            else:
                judges[name] = load_reward(spec, accelerator=accelerator)
        value = None
        if with_value:
            if value_from is None and isinstance(judges["helpfulness"], Path):
                value_from = judges["helpfulness"]
            if value_from is None:
                base.add_new(VALUE, adapter or AdapterConfig(), root, seed=seed + 1)
            elif shares_base(value_from, root, quantization):
                base.add_saved(VALUE, value_from, trained=True)
            else:
                held = quantization or "whole"
                raise InputError(
                    f"value_from: {value_from} is not an adapter over {root} ({held}), the base that all roles share; "
                    "name a reward model trained so, or leave it out"
                )
            value = base.reward_model(value_from, seed=seed)
        return cls(base, value, reference, judges, accelerator)

    def prepare(self, optimizer: OptimizerConfig, temperature: float = 1.0) -> Stepper:
        self._trained.temperature = temperature
        say_how_to_draw(self._base.model, temperature)
        stepper = Stepper(self._trained, optimizer, self._accelerator, name="ppo")
        self._stepper = stepper
        for judge in (self.helpfulness, self.safety):
            if isinstance(judge, AdapterReward):
                judge.to(self._accelerator.device)
                if is_partitioned(self._accelerator):  # the base's weights are gathered layer by layer
                    judge.run_in_step(self._stepper.model, self._accelerator)
        return stepper

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        logprobs: Tensor = self._stepper.model(batch=batch, reference=True)[0]
        return logprobs

    @contextmanager
    def gathered(self) -> Iterator[Any]:
        with self._whole.gathered(), self._whole_base.using(POLICY) as model, self._accelerator.autocast():
            yield model

    def save_policy(self, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
        is_main = self._accelerator.is_main_process
        if is_main:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tokenizer.save_pretrained(folder)
            say_how_to_stop(self._base.model, tokenizer)
            self._base.model.generation_config.save_pretrained(folder)
        self._base.save(POLICY, Path(folder), is_main=is_main)
        self._accelerator.wait_for_everyone()


class AdapterReward:
    """A reward function that is an adapter with a head on a shared base, rendered by its checkpoint's tokenizer.

    Args:
        base: with the adapter `name`.
        folder: its checkpoint.
    """

    def __init__(self, base: SharedBase, name: str, folder: Path) -> None:
        self._base, self._name = base, name
        self.__name__ = str(folder)  # for messages
        self._function = RewardModelFunction.of(base.reward_model(folder), folder)

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        with self._base.using(self._name):
            return self._function(conversations)

    def run_in_step(self, engine: nn.Module, accelerator: Accelerator) -> None:
        """The base's weights are divided: every process makes its calls together.

        Args:
            engine: the prepared `SharedPolicyAndValue`, which gathers each layer's as it is run.
        """

        def run(**batch: Any) -> RewardOutput:
            return RewardOutput(*engine(batch=batch, judge=self._function.model)[:2])

        self._function.run_in_step(run, agreement(accelerator), partial(settle, engine))

    @property
    def too_long(self) -> list[bool]:
        """See `RewardModelFunction`."""
        return self._function.too_long

    @property
    def scored(self) -> int:
        """See `RewardModelFunction`."""
        return self._function.scored

    @property
    def cut(self) -> int:
        """See `RewardModelFunction`."""
        return self._function.cut

    def to(self, device: torch.device) -> None:
        """Move the heads; the base is there already."""
        model = self._function.model
        for head in (model.model.score, model.safety_head):
            if head is not None:
                head.to(device)


def shares_base(spec: str | os.PathLike[str], root: Path, quantization: str | None) -> bool:
    """Whether `spec` is a checkpoint that holds an adapter over the weights in `root`, held as `quantization` says."""
    if not is_adapter_checkpoint(spec):
        return False
    return base_folder(spec).resolve() == root.resolve() and base_quantization(Path(spec)) == quantization


def _load_base(policy: Path, root: Path, quantization: str | None, dtype: str, of_main: bool) -> PreTrainedModel:
    """`of_main`: the weights come from the main process, when they are divided: a machine holds them once."""
    require_policy(policy)
    if of_main:
        model: PreTrainedModel = without_values(root, dtype_of(dtype))
    else:
        model = load_base(root, quantization, dtype)
    add_pad_embedding(model, load_tokenizer(policy))
    return model
