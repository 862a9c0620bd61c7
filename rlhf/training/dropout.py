"""Dropout whose mask a CPU draws sixteen bits at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class PackedDropout(nn.Dropout):
    """`torch.nn.Dropout` with p rounded to a multiple of 2^-16, its numbers drawn four at once.

    torch calls a CPU's generator for each number, which took a sixth of a LoRA step. On a GPU it is torch's own.
    """

    def forward(self, states: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        if not self.training or states.device.type != "cpu" or not 0 < dropped < _LEVELS:
            return super().forward(states)
        words = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        drawn = words.view(torch.int16)[: states.numel()].view(states.shape)
        kept = (drawn >= dropped - _LEVELS // 2).to(states.dtype).mul_(_LEVELS / (_LEVELS - dropped))
        return states * kept


def pack_dropout(model: nn.Module) -> None:
    """Make every `torch.nn.Dropout` of the model a `PackedDropout`, in place."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = PackedDropout
