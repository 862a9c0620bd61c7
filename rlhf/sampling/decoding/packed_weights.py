"""A model's matrices, laid out once as the CPU's matrix product reads them.

Decoding multiplies a few rows with every weight of the model, token after token, and each product of torch's would
bring its weights into that layout anew, those in 4 bit after they have been dequantised. Here that is done once for all
tokens of a call, and a LoRA adapter is two products in the base's type and nothing else. Same numbers, up to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from rlhf.launch import processes_here

SHARE = 0.25  # of the free memory, which the copies may take
SMALLEST = 1 << 14  # numbers of a matrix: below, the layout is no matter


@contextmanager
def packed_weights(model: PreTrainedModel, rows: int) -> Iterator[None]:
    """Within, the model's linear layers multiply by packed copies of their weights, which must not change meanwhile.

    On a CPU, in inference mode, and where the copies take no more than a quarter of the free memory; elsewhere nothing
    is done. A pass with gradients goes by the weights themselves, and one with another adapter by that.

    Args:
        rows: tokens that most forward passes will have.
    """
    layers = _layers(model)
    changed: list[nn.Module] = []
    try:
        for layer, dtype in layers:
            _set_forward(layer, _packed(layer, dtype, rows), changed)
        for adapted, dtype in _adapted_layers(model, dict(layers)):
            _set_forward(adapted, _with_adapter(adapted, dtype), changed)
        yield
    finally:
        for module in changed:
            del module.forward


def _set_forward(module: nn.Module, forward: Callable[..., Tensor], changed: list[nn.Module]) -> None:
    module.forward = forward
    changed.append(module)


def _packed(layer: nn.Linear, dtype: torch.dtype, rows: int) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(_whole(layer).to(dtype), rows)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    cast = torch.is_autocast_enabled("cpu")

    def forward(states: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not (cast or states.dtype == dtype):
            result: Tensor = type(layer).forward(layer, states)
            return result
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states.to(dtype), weight, bias, "none", [], "")
        return product

    return forward


def _whole(layer: Any) -> Tensor:
    """The matrix that the layer multiplies by, (out, in)."""
    if type(layer) is nn.Linear:
        return layer.weight.detach()

    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return found


def _with_adapter(layer: Any, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Of a peft layer whose base is packed, with the one adapter that is active now."""
    names = list(layer.active_adapters)
    (name,) = names
    down = layer.lora_A[name].weight.detach().to(dtype)
    up = (layer.lora_B[name].weight.detach() * layer.scaling[name]).to(dtype).t()
    cast = torch.is_autocast_enabled("cpu")

    def forward(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        off = layer.disable_adapters or layer.merged or layer.active_adapters != names
        off = off or not (cast or states.dtype == dtype)
        if args or kwargs or off or torch.is_grad_enabled():
            result: Tensor = type(layer).forward(layer, states, *args, **kwargs)
            return result
        found: Tensor = layer.base_layer(states)
        low = linear(states.to(dtype), down)
        found.view(-1, found.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up)
        return found

    return forward


def _layers(model: PreTrainedModel) -> list[tuple[nn.Linear, torch.dtype]]:
    """Those that are packed, and in what they multiply: where autocast is on, in its type."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.is_inference_mode_enabled():
        return []
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    modules: list[Any] = list(model.modules())
    layers = [
        (module, dtype)
        for module in modules
        if "forward" not in vars(module) and (dtype := _multiplies_in(module, cast)) is not None
        if module.in_features * module.out_features >= SMALLEST and module.weight.device.type == "cpu"
    ]
    size = sum(layer.in_features * layer.out_features * dtype.itemsize for layer, dtype in layers)
    return layers if size <= SHARE * psutil.virtual_memory().available / processes_here() else []


def _multiplies_in(module: Any, cast: torch.dtype | None) -> torch.dtype | None:
    """A linear layer's type; None: it is no plain one, or in 4 bit and gives another type than it computes in."""
    if type(module) is nn.Linear:
        dtype = cast or module.weight.dtype
        return dtype if module.weight.dtype in (torch.float32, torch.bfloat16) else None
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None or type(module) is not bitsandbytes.nn.Linear4bit:
        return None
    in_order = module.weight.quant_state is not None and not getattr(
        module.weight.quant_state, "packing_format_for_cpu", False
    )
    return torch.float32 if in_order and cast is None and module.compute_dtype == torch.float32 else None


def _adapted_layers(model: PreTrainedModel, packed: dict[nn.Linear, torch.dtype]) -> list[tuple[Any, torch.dtype]]:
    """peft's layers over packed ones, each with one plain LoRA adapter at work."""
    lora = sys.modules.get("peft.tuners.lora")
    kinds = () if lora is None else (lora.Linear, getattr(lora, "Linear4bit", None))
    found: list[Any] = [layer for layer in model.modules() if type(layer) in kinds]
    return [
        (layer, packed[layer.base_layer])
        for layer in found
        if layer.base_layer in packed
        and len(layer.active_adapters) == 1
        and not (layer.disable_adapters or layer.merged or layer.training)
        and all(name in layer.lora_A and name not in layer.lora_variant for name in layer.active_adapters)
        and layer.lora_B[layer.active_adapters[0]].bias is None
    ]
