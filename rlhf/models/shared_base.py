"""One frozen set of weights in many roles: a causal LM that carries several LoRA adapters, one or none of them active.

peft's layers hold the adapters side by side; switching changes which of them a layer adds, and copies nothing. (peft's
own `set_adapter` also switches gradients on and off.) A classifier over the base is a view: its backbone is the base's,
only its head is its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.imports import require_packages
from rlhf.models.adapters import (
    adapter_tensors,
    four_bit_dtype,
    is_quantized,
    lora_config,
    peft_sentences,
    save_adapter,
)
from rlhf.models.checkpoint.folder import ADAPTER_FOLDER, ADAPTER_PREFIX, SAFETY_HEAD_FILE
from rlhf.models.checkpoint.saving import is_partitioned_model, probe_logits, whole_state_dict
from rlhf.models.classifier import classifier_for
from rlhf.models.config import AdapterConfig
from rlhf.models.coverage import adapter_coverage, say_coverage
from rlhf.models.reward_model import RewardModel, new_head

if TYPE_CHECKING:
    from peft import LoraConfig


class SharedBase:
    """A base and its adapters by name.

    Args:
        model: causal LM, in 4 bit or not; frozen here. A copy of one that carries adapters already is taken as it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_packages("adapter: LoRA needs", "peft")
        self.model = model
        self.trained: set[str] = set()
        self._layers = _adapted_layers(model)
        self._active: str | None = None
        if not self._layers:
            if is_quantized(model):
                from peft import prepare_model_for_kbit_training

                prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
            model.requires_grad_(False).eval()
        self._configs: dict[str, LoraConfig] = dict(getattr(model, "peft_config", {}))

    def add_new(self, name: str, adapter: AdapterConfig, base: Path, *, seed: int) -> None:
        """A trained adapter that changes nothing yet; `base` is the folder of the base's checkpoint, to be saved."""
        with torch.random.fork_rng(devices=[]):  # peft draws an adapter without a generator
            torch.manual_seed(seed)
            self._add(name, lora_config(adapter, "CAUSAL_LM", self.model, base), trained=True)
        say_coverage("adapter", "a LoRA adapter", adapter_coverage(self.model))

    def add_saved(self, name: str, folder: Path, *, trained: bool) -> None:
        """The adapter of a checkpoint, of a policy or of a reward model over this base.

        One that is not trained is held in the type that the base computes in.

        Raises:
            InputError: its layers are not this base's.
        """
        from peft import LoraConfig

        saved = {
            key.removeprefix(ADAPTER_PREFIX).replace(".weight", f".{name}.weight"): tensor
            for key, tensor in adapter_tensors(folder).items()
            if ".lora_" in key
        }
        with peft_sentences(folder / ADAPTER_FOLDER):
            lora = LoraConfig.from_pretrained(os.fspath(folder / ADAPTER_FOLDER))
            lora.inference_mode = False
            self._add(name, lora, trained=trained)
            missing, unexpected = self.model.load_state_dict(saved, strict=False)
        wrong = [*unexpected, *(key for key in missing if f".{name}." in key)]
        if wrong:
            raise InputError(f"checkpoint: the adapter of {folder} does not fit the shared base at {wrong[0]}")

    def _add(self, name: str, lora: LoraConfig, *, trained: bool) -> None:
        from peft import inject_adapter_in_model

        vars(self.model).pop("peft_config", None)  # or peft warns of what is meant here
        with peft_sentences():
            inject_adapter_in_model(lora, self.model, adapter_name=name)
        self._configs[name] = lora
        self.model.peft_config = self._configs  # type: ignore[assignment]  # it would take any kind of adapter's
        self._layers = _adapted_layers(self.model)
        if trained:
            self.trained.add(name)
        for parameter_name, parameter in self.model.named_parameters():
            owner = parameter_name.split(".")[-2]
            parameter.requires_grad_(owner in self.trained and ".lora_" in parameter_name)
            if owner == name and ".lora_" in parameter_name:
                parameter.data = parameter.data.to(torch.float32 if trained else self._compute_dtype)
        self._activate(None)

    @property
    def _compute_dtype(self) -> torch.dtype:
        return four_bit_dtype() if is_quantized(self.model) else self.model.dtype

    @contextmanager
    def using(self, name: str | None) -> Iterator[PreTrainedModel]:
        """Run the model inside as this adapter has it; None: as the base alone is."""
        before = self._active
        self._activate(name)
        try:
            yield self.model
        finally:
            self._activate(before)

    def _activate(self, name: str | None) -> None:
        if name is not None and name not in self._configs:
            raise ValueError(f"shared base: there is no adapter {name!r}")
        for layer in self._layers:
            layer._active_adapter = [] if name is None else [name]
        self._active = name

    def recomputed(self) -> tuple[Any, Any]:
        """`context_fn` of torch's checkpointing: what is run again in the backward pass is run in the same role."""
        return self.using(self._active), self.using(self._active)

    def reward_model(self, folder: Path | None, *, seed: int = 0) -> RewardModel:
        """A reward model whose backbone is the base's own; run it within `using`.

        Args:
            folder: of a checkpoint that has its heads; None: a new score head, and no safety head.
            seed: of a new head.
        """
        with torch.device("meta"):
            classifier = classifier_for(self.model.config).from_config(self.model.config)
        hidden, bias = classifier.score.in_features, classifier.score.bias is not None
        classifier.score = new_head(hidden, bias=bias, generator=torch.Generator().manual_seed(seed))
        prefix = classifier.base_model_prefix  # Llama 4's language model says another one of itself
        setattr(classifier, prefix, getattr(self.model, prefix, self.model.base_model))
        classifier.config = self.model.config  # attention reads the backbone's
        safety = nn.Linear(hidden, 1) if folder and (folder / SAFETY_HEAD_FILE).is_file() else None
        reward = RewardModel(classifier, safety)
        if folder is not None:
            reward.load_heads(folder)
        return reward

    def save(self, name: str, folder: Path, *, is_main: bool = True) -> None:
        """Write an adapter as peft does, and read it again. Every process calls it; the main one writes.

        Raises:
            InputError: what was written is not what is in memory.
        """
        every = whole_state_dict(self.model, keep=is_main, only_trainable=True)
        state = {key: tensor for key, tensor in every.items() if f".{name}." in key}
        if is_main:
            probe = None if is_partitioned_model(self.model) else probe_logits
            with self.using(name):
                save_adapter(self.model, state, folder, probe, name=name, config=self._configs[name])


def _adapted_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
