"""Linear layers that take the memory of 4-bit ones and hold no data: for the planner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BYTES_A_WEIGHT = 0.5 + 1 / 64 + 4 / 64 / 256
"""NF4, double quantised: 4 bits, and for each 64 weights an 8-bit scale, for each 256 of these a float32 one."""


class _Dequantised(torch.autograd.Function):
    """x W^T with W made for the product alone, forward and backward, as bitsandbytes does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return x.to(torch.bfloat16) @ packed.new_empty(shape, dtype=torch.bfloat16).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.saved_tensors[0].new_empty(ctx.shape, dtype=torch.bfloat16), None, None


class PlannedLinear4bit(nn.Linear):
    """Its weight is a row of bytes, as many as the packed weight has."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        size = round(self.in_features * self.out_features * BYTES_A_WEIGHT)
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Dequantised.apply(input, self.weight, (self.out_features, self.in_features))  # type: ignore[no-untyped-call]
        return (output if self.bias is None else output + self.bias).to(input.dtype)


def hold_in_4_bit(model: PreTrainedModel) -> None:
    """Replace every linear layer but the head, in place; the rest is float32, as training on 4-bit weights has it."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child is not head:
                setattr(module, name, PlannedLinear4bit(child))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
