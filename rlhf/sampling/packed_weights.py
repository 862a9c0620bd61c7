"""A model's matrices, laid out once as the CPU's matrix product reads them.

Decoding multiplies a few rows with every weight of the model, token after token, and each product of torch's would
bring its weights into that layout anew. Here that is done once for all tokens of a call. Same numbers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.launch import processes_here

SHARE = 0.25  # of the free memory, which the copies may take
SMALLEST = 1 << 14  # numbers of a matrix: below, the layout is no matter


@contextmanager
def packed_weights(model: PreTrainedModel, rows: int) -> Iterator[None]:
    """Within, the model's linear layers multiply by packed copies of their weights, which must not change meanwhile.

    On a CPU, in inference mode, and where the copies take no more than a quarter of the free memory; elsewhere nothing
    is done.

    Args:
        rows: tokens that most forward passes will have.
    """
    layers = _layers(model)
    for layer, dtype in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), rows)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        layer.forward = partial(_linear, weight, bias, dtype)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.forward


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, states: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states.to(dtype), weight, bias, "none", [], "")
    return product


def _layers(model: PreTrainedModel) -> list[tuple[nn.Linear, torch.dtype]]:
    """Those that are packed, and in what they multiply: where autocast is on, in its type."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.is_inference_mode_enabled():
        return []
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    known = (torch.float32, torch.bfloat16)
    layers = [
        (module, cast or module.weight.dtype)
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.numel() >= SMALLEST and module.weight.dtype in known
        if "forward" not in vars(module) and module.weight.device.type == "cpu"
    ]
    size = sum(layer.weight.numel() * dtype.itemsize for layer, dtype in layers)
    return layers if size <= SHARE * psutil.virtual_memory().available / processes_here() else []
