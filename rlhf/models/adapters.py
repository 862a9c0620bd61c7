"""LoRA adapters, on whole weights or over 4-bit ones (QLoRA): how they are made, merged, saved and loaded.

What policies and reward models share. A policy is wrapped by peft; a reward model has peft's layers put into its
backbone, so that its heads stay plain layers beside them. On disk both are peft adapters over a causal LM or over a
sequence classifier.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.models.checkpoint import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    adapter_settings,
    base_quantization,
    write_base_quantization,
)
from rlhf.models.config import AdapterConfig

if TYPE_CHECKING:
    from peft import LoraConfig


def require_qlora(package: str) -> None:
    """InputError where an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"adapter, quantization: need the package {package}; install it by `pip install rlhf[qlora]`")


def lora_config(
    adapter: AdapterConfig, task: Literal["CAUSAL_LM", "SEQ_CLS"], base: str | os.PathLike[str] | None = None
) -> LoraConfig:
    """peft's settings of a new adapter on every linear layer but the head; `base` is the folder of its base."""
    require_qlora("peft")
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules="all-linear",
        task_type=task,
        base_model_name_or_path=os.fspath(base) if base is not None else None,
    )


def require_saved_size(folder: Path, adapter: AdapterConfig) -> None:
    """InputError where the adapter that a checkpoint holds is of another size than the one asked for."""
    saved = adapter_settings(folder)
    if (adapter.r, adapter.alpha) != (saved["r"], saved["lora_alpha"]):
        raise InputError(
            f"adapter: {folder} has r {saved['r']} and alpha {saved['lora_alpha']}, asked "
            f"are r {adapter.r} and alpha {adapter.alpha}; use the saved sizes, or merge it first"
        )


def saved_quantization(folder: Path, asked: Literal["nf4"] | None) -> Literal["nf4"] | None:
    """How to load the base of an adapter checkpoint; InputError where 4 bit is asked for and it was trained whole."""
    saved = base_quantization(folder)
    if asked is not None and saved is None:
        raise InputError(
            f"quantization: the adapter of {folder} was trained over whole weights, and in 4 bit they are others; "
            "leave it out, or merge the adapter first (recipes/merge_adapter.py)"
        )
    return saved


def is_quantized(model: Any) -> bool:
    """Whether a model of transformers, or one that peft wrapped, holds its weights in 4 bit."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_quantized", False))


def inject_adapter(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Put a new adapter into the layers of a model, in place; of all its parameters the adapter's alone are trained."""
    require_qlora("peft")
    from peft import inject_adapter_in_model, prepare_model_for_kbit_training

    if is_quantized(model):
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    inject_adapter_in_model(lora, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # whatever type the base computes in


def restore_adapter(model: PreTrainedModel, folder: Path, adapter: AdapterConfig | None) -> None:
    """Put the adapter of a checkpoint folder into the layers of a classifier, in place, to go on training or to score.

    The adapter of a causal LM fits too: the layers have the same names. Of `adapter` the dropout counts.
    """
    require_qlora("peft")
    from peft import LoraConfig

    lora = LoraConfig.from_pretrained(folder / ADAPTER_FOLDER)
    lora.task_type, lora.inference_mode = "SEQ_CLS", False
    if adapter is not None:
        lora.lora_dropout = adapter.dropout
    inject_adapter(model, lora)
    saved = {
        name.removeprefix(ADAPTER_PREFIX).replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(folder / ADAPTER_FOLDER / ADAPTER_FILE).items()
        if ".lora_" in name
    }
    missing, unexpected = model.load_state_dict(saved, strict=False)
    wrong = [*unexpected, *(name for name in missing if ".lora_" in name)]
    if wrong:
        raise InputError(f"checkpoint: the adapter of {folder} does not fit its base at {wrong[0]}; save it again")


def save_adapter(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the adapter that `inject_adapter` put in, as peft does.

    Args:
        state: the trained parameters by name: the adapter's, and those of a head beside it.
    """
    model.peft_config["default"].save_pretrained(folder / ADAPTER_FOLDER)
    tensors = {ADAPTER_PREFIX + name.replace(".default.", "."): tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / ADAPTER_FOLDER / ADAPTER_FILE, metadata={"format": "pt"})
    write_base_quantization(folder, "nf4" if is_quantized(model) else None)


def merged_weights(base: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Whole weights W + scaling x B A under the base model's own names, computed from the (gathered) state dict.

    Args:
        base: the model that holds peft's layers.
        state: its state dict, each name with `prefix` before it.
    """
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain = name.removeprefix(prefix)
        if ".base_layer." in plain:
            module = plain.split(".base_layer.")[0]
            if plain.endswith(".weight"):
                layer: Any = base.get_submodule(module)
                a, b = (state[f"{prefix}{module}.lora_{x}.default.weight"].float() for x in "AB")
                update = layer.scaling["default"] * (b @ a)
                tensor = (tensor.float() + (update.T if layer.fan_in_fan_out else update)).to(tensor.dtype)
            plain = plain.replace(".base_layer.", ".")
        merged[plain] = tensor
    return merged
