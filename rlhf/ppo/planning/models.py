"""The models of a planned run, without data, and the bytes that each role holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf.models.checkpoint.folder import adapter_settings, base_folder, is_adapter_checkpoint
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.classifier import classifier_for
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import dtype_of
from rlhf.models.reward_model import RewardModel
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.model import disable_dropout
from rlhf.ppo.planning.hardware import Hardware
from rlhf.ppo.planning.nf4 import hold_in_4_bit
from rlhf.ppo.shared import shares_base
from rlhf.sampling.engine.following import cache_bytes
from rlhf.sampling.source import EngineConfig

LIVE = 10**9
"""Weights that DeepSpeed gathers at most before it frees others, its stage3_max_live_parameters."""


@dataclass(frozen=True)
class Setting:
    """What of a run decides its memory and time.

    Args:
        policy: checkpoint folder; of its files the configs are read.
        judges: name -> folder of a reward model; None: one like the policy, which is not trained yet.
        referee: the same of reward models that score held-out answers alone, always with weights of their own.
        value: folder that the value model starts from; None: one like the policy.
        shared, adapter, quantization, dtype: as in the recipe; separate roles are trained in float32.
        max_new_tokens: longest answer.
        temperature: of the answers.
        engine: draws them beside the training; None: the policy itself does.
    """

    policy: Path
    judges: Mapping[str, Path | None]
    ppo: PPOConfig
    max_new_tokens: int
    temperature: float = 1.0
    referee: Mapping[str, Path | None] = field(default_factory=dict)
    value: Path | None = None
    shared: bool = False
    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    dtype: str = "float32"
    engine: EngineConfig | None = None


class FakeModels:
    """The run's models without data: `policy`, `value` (a RewardModel) and, with shared roles, their base."""

    def __init__(self, setting: Setting, hardware: Hardware) -> None:
        self.setting, self.hardware = setting, hardware
        config = from_pretrained(AutoConfig, base_folder(setting.policy))
        dtype = dtype_of(setting.dtype) if setting.shared else torch.float32
        if hardware.zero_stage and hardware.mixed_precision == "bf16":
            dtype = torch.bfloat16
        self.config = config
        self.policy: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        self.base: SharedBase | None = None
        if setting.shared:
            if setting.quantization is not None:
                hold_in_4_bit(self.policy)
            self.base = SharedBase(self.policy)
            self.base.add_new("policy", _adapter(setting), base_folder(setting.policy), seed=0)
        self.value: RewardModel | None = None
        if setting.ppo.learns_value:
            if self.base is not None:
                size = _adapter(setting)
                if setting.value is not None and is_adapter_checkpoint(setting.value):
                    size = replace(size, r=_rank(setting.value))
                self.base.add_new("value", size, base_folder(setting.policy), seed=0)
                self.value = self.base.reward_model(None)
            else:
                own = _one_label(from_pretrained(AutoConfig, base_folder(setting.value or setting.policy)))
                self.value = RewardModel(classifier_for(own).from_config(own, dtype=dtype))
        for model in (self.policy, self.value):
            if model is not None:
                disable_dropout(model)
                if setting.ppo.optimizer.gradient_checkpointing:
                    options: dict[str, Any] = {"use_reentrant": False}
                    if self.base is not None:
                        options["context_fn"] = self.base.recomputed
                    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        self.policy.train()

    def using(self, name: str) -> Any:
        """The base in a role, where there is one."""
        return nullcontext() if self.base is None else self.base.using(name)

    def autocast(self) -> Any:
        on = self.hardware.mixed_precision == "bf16" and not self.hardware.zero_stage
        return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()

    def trained(self) -> int:
        """Trained parameters of policy and value."""
        models: list[nn.Module] = [self.policy]
        if self.value is not None:
            models.append(self.value)
        unique = {id(p): p for model in models for p in model.parameters() if p.requires_grad}
        return sum(p.numel() for p in unique.values())

    def held(self) -> dict[str, dict[str, float]]:
        """Role -> what it is (weights, optimizer, …) -> bytes that lie on one device throughout the run."""
        return self._roles_held() | self._engine_held()

    def engine_weights(self) -> float:
        """Bytes of the engine's weights on one device; 0 without one."""
        if self.setting.engine is None:
            return 0.0
        count = sum(p.numel() for n, p in self.policy.named_parameters() if ".lora_" not in n)
        return self._engine_type.itemsize * count / self.setting.engine.gpus

    @property
    def _engine_type(self) -> torch.dtype:
        half = self.hardware.mixed_precision == "bf16"
        return dtype_of(self.setting.dtype) if self.setting.shared else torch.bfloat16 if half else torch.float32

    def _engine_held(self) -> dict[str, dict[str, float]]:
        if self.setting.engine is None:
            return {}
        longest = self.hardware.prompt_tokens + self.setting.max_new_tokens
        size = cache_bytes(self.config, self._engine_type.itemsize, self.drawn()[0], longest) / self.setting.engine.gpus
        asked = self.setting.engine.options.get("kv_cache_memory_bytes")
        return {
            "engine": {"weights": self.engine_weights()},
            "engine's cache": {"weights": float(asked) if isinstance(asked, int) else size},
        }

    def drawn(self) -> tuple[int, int]:
        """Of each that draws, a process or the engine of several: answers that it writes side by side, and all of an
        iteration."""
        engine, devices = self.setting.engine, self.hardware.devices
        each = 1 if engine is None or devices == 1 else engine.devices
        every = math.ceil(self.setting.ppo.batch_size * each / devices)
        return min(self.setting.ppo.rows * each, every), every

    def _roles_held(self) -> dict[str, dict[str, float]]:
        if self.base is None:
            whole = bytes_of(self.policy)
            found = {
                "policy": {"weights": self._sharded(whole), "optimizer": self._optimizer(_count(self.policy))},
                "reference": {"weights": self._sharded(whole)},
            }
            if self.value is not None:
                count = _count(self.value)
                found["value"] = {"weights": self._sharded(bytes_of(self.value)), "optimizer": self._optimizer(count)}
            return found | self._own_judges_held()
        adapters = {name: _named_bytes(self.policy, name) for name in ("policy", "value")}
        base = bytes_of(self.policy) - sum(adapters.values())
        found = {"base": {"weights": self._sharded(base)}}
        half = self.hardware.zero_stage and self.hardware.mixed_precision == "bf16"  # DeepSpeed trains in two bytes
        for name in ("policy", "value") if self.value is not None else ("policy",):
            size = adapters[name] / 2 if half else adapters[name]
            parts = {"weights": self._sharded(size), "optimizer": self._optimizer(adapters[name] // 4)}
            found[name] = parts
        frozen = torch.bfloat16 if self.setting.quantization else dtype_of(self.setting.dtype)
        size = adapters["policy"] // 4 * frozen.itemsize
        if is_adapter_checkpoint(self.setting.policy):
            found["reference"] = {"weights": self._sharded(size)}
        for name, folder in self.setting.judges.items():
            if name in self.own_judges:
                continue
            rank = 1.0 if folder is None else _rank(folder) / _adapter(self.setting).r
            found[name] = {"weights": self._sharded(size * rank)}
        return found | self._own_judges_held()

    @cached_property
    def own_judges(self) -> dict[str, float]:
        """Bytes of the reward models that are no adapters over the shared base, by their names."""
        setting = self.setting
        root = base_folder(setting.policy)

        def shares(folder: Path | None) -> bool:
            return setting.shared and (folder is None or shares_base(folder, root, setting.quantization))

        own = {name: folder for name, folder in setting.judges.items() if not shares(folder)}
        folders = {**own, **setting.referee}
        return {name: self._judge_bytes(folder or setting.policy) for name, folder in folders.items()}

    def _own_judges_held(self) -> dict[str, dict[str, float]]:
        return {name: {"weights": self._sharded(size)} for name, size in self.own_judges.items()}

    def _judge_bytes(self, folder: Path) -> float:
        """Of a reward model with weights of its own, which is held in the type of the mixed precision."""
        config = _one_label(from_pretrained(AutoConfig, base_folder(folder)))
        with torch.device("meta"):
            model = classifier_for(config).from_config(config)
        return float(_count(model) * (2 if self.hardware.mixed_precision == "bf16" else 4))

    def _sharded(self, count: float) -> float:
        if self.hardware.zero_stage < 3:
            return count
        return 0.0 if self.hardware.offload else count / self.hardware.devices

    def _optimizer(self, count: float) -> float:
        """Adam's two moments in float32; DeepSpeed's bf16 adds a master copy."""
        zero, bf16 = self.hardware.zero_stage, self.hardware.mixed_precision == "bf16"
        each = 12 if zero and bf16 else 8
        return 0.0 if self.hardware.offload else each * count / (self.hardware.devices if zero else 1)

    def gradients(self) -> float:
        """Bytes of the update's gradients."""
        zero, bf16 = self.hardware.zero_stage, self.hardware.mixed_precision == "bf16"
        each = 2 if zero and bf16 else 4
        return each * self.trained() / (self.hardware.devices if zero >= 2 else 1)

    def copies(self) -> int:
        """Bytes of the trained matrices in bfloat16, which autocast keeps while answers are written."""
        if self.hardware.mixed_precision != "bf16" or self.hardware.zero_stage:
            return 0
        matrices = (module.weight for module in self.policy.modules() if isinstance(module, nn.Linear))
        return sum(2 * m.numel() for m in matrices if m.requires_grad and m.dtype == torch.float32)

    def gathered(self) -> float:
        """Bytes of whole weights beyond the held share, for sampling under ZeRO-3."""
        return bytes_of(self.policy) - self._sharded(bytes_of(self.policy)) if self.hardware.zero_stage == 3 else 0.0

    def fetched(self, whole: float) -> float:
        """Bytes of the layers that ZeRO-3 gathers as models are run, of so many bytes in all; 0 without it."""
        return min(whole, float(LIVE * self.policy.dtype.itemsize)) if self.hardware.zero_stage == 3 else 0.0

    def trained_bytes(self) -> int:
        """Of policy and value with all that they are adapters over."""
        return bytes_of(self.policy) + (0 if self.value is None or self.base is not None else bytes_of(self.value))


def _adapter(setting: Setting) -> AdapterConfig:
    """The size of the policy's adapter: the saved one's, or the one asked for."""
    if is_adapter_checkpoint(setting.policy):
        saved = adapter_settings(setting.policy)
        return AdapterConfig(r=saved["r"], alpha=saved["lora_alpha"], dropout=0.0)
    return replace(setting.adapter or AdapterConfig(), dropout=0.0)


def _rank(folder: Path) -> int:
    return int(adapter_settings(folder)["r"])


def _one_label(config: Any) -> Any:
    return type(config).from_dict({**config.to_dict(), "id2label": {0: "score"}})


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def bytes_of(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def _named_bytes(model: nn.Module, adapter: str) -> int:
    return sum(p.nbytes for n, p in model.named_parameters() if f".{adapter}." in n)
