"""Two ways to merge a QLoRA adapter into whole weights (its report, section 4.1), and how far they are from each other.
Light: torch is loaded when called.

SIMPLE adds the adapter's update to the base's own weights; CAREFUL adds it to what training saw, the base quantised to
NF4 and dequantised again. The base is bfloat16 before the addition, as it is when the 4-bit model computes on a GPU.

    simple   W + (alpha / r) B A
    careful  dq(nf4(W)) + (alpha / r) B A

Neither is reliably the better model: the careful one is the trained one up to rounding, the simple one has weights that
were never rounded to 4 bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.imports import require_packages
from rlhf.models.adapters import adapter_tensors, merged_weights, saved_adapter
from rlhf.models.checkpoint.folder import (
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    base_folder,
    base_quantization,
    require_checkpoint,
    require_policy_adapter,
)
from rlhf.models.coverage import OTHER_SENSES
from rlhf.models.policy import add_pad_embedding, dtype_of, load_base, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Merge = Literal["simple", "careful"]


@dataclass(frozen=True)
class LayerDistance:
    """One linear layer under an adapter, Frobenius norms in float32.

    Args:
        name: of the layer in the base model.
        weight: ||W||.
        quantization: ||W - dq(nf4(W))||, the distance of the two merges; 0 where the base is held whole.
        update: ||(alpha / r) B A||, what training changed.
    """

    name: str
    weight: float
    quantization: float
    update: float


def merged_policy(checkpoint: str | os.PathLike[str], merge: Merge, dtype: str = "bfloat16") -> PreTrainedModel:
    """The whole model of an adapter checkpoint, in eval mode; `save_policy` writes it, plain transformers loads that.

    Args:
        checkpoint: folder of a policy's adapter.
        merge: see this file's docstring; "careful" only over 4-bit weights.
        dtype: of the base before the addition and of the result.

    Raises:
        InputError: see `require_policy_adapter`.
    """
    from rlhf.models.checkpoint.saving import SourceTypes, remember_source

    folder = require_policy_adapter(checkpoint, merge)
    model = _with_adapter(folder, dtype)
    base = model.get_base_model()
    if merge == "careful":
        for name, weight in _dequantized(folder):
            layer: Any = base.get_submodule(name)
            getattr(layer, "base_layer", layer).weight.data.copy_(weight)
    weights = merged_weights(base, model.state_dict(), ADAPTER_PREFIX)
    merged: PreTrainedModel = model.unload()
    merged.load_state_dict(weights)
    remember_source(merged, SourceTypes({}, dtype_of(dtype)))
    merged.requires_grad_(False).eval()
    return merged


def layer_distances(checkpoint: str | os.PathLike[str]) -> list[LayerDistance]:
    """How much quantisation and training each changed every linear layer, in the model's order."""
    import torch

    folder = require_policy_adapter(checkpoint, "simple")
    base = _with_adapter(folder, "float32").get_base_model()
    layers: dict[str, Any] = {name: layer for name, layer in base.named_modules() if hasattr(layer, "base_layer")}
    lost = dict.fromkeys(layers, 0.0)
    if base_quantization(folder) is not None:
        for name, weight in _dequantized(folder):
            if name in layers:
                lost[name] = (layers[name].base_layer.weight.data - weight.cpu()).norm().item()
    with torch.no_grad():
        return [
            LayerDistance(
                name=name,
                weight=layer.base_layer.weight.norm().item(),
                quantization=lost[name],
                update=layer.get_delta_weight("default").norm().item(),
            )
            for name, layer in layers.items()
        ]


def _with_adapter(folder: Path, dtype: str) -> Any:
    """The base in whole weights under the checkpoint's adapter, wrapped by peft, also where it was in 4 bit."""
    require_packages("adapter: LoRA needs", "peft")
    model = load_base(require_checkpoint(base_folder(folder)), None, dtype)
    add_pad_embedding(model, load_tokenizer(folder))
    adapter_tensors(folder)  # each is finite
    return saved_adapter(model, folder / ADAPTER_FOLDER)


def _dequantized(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(layer, its weights after 4 bit in float32, as the layer holds them whole) of every layer that is in 4 bit in
    training; the other senses took no part in it."""
    import torch

    model = load_base(base_folder(folder), "nf4", "float32")
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit) and not OTHER_SENSES.search(name):
            layer: Any = module  # its weight is a Params4bit
            with torch.no_grad():
                found = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                yield name, found.T if issubclass(layer.source_cls, Conv1D) else found  # GPT-2's: (in, out)
