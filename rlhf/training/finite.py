"""Weights that are not finite say nothing: they are neither saved nor loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlhf.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def require_finite(tensors: Iterable[tuple[str, Tensor]], where: str | os.PathLike[str], way_out: str) -> None:
    """InputError naming the first tensor of floating point that holds NaN or infinity; one pass, nothing is copied.

    Args:
        tensors: name -> tensor; those without elements (partitioned by ZeRO-3, or on meta) are left alone.
        where: what they are of, for the message.
        way_out: likewise.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
            continue
        low, high = tensor.detach().aminmax()  # NaN comes through
        if not bool(low.isfinite() & high.isfinite()):
            raise InputError(f"checkpoint: {where} has values in {name} that are not finite; {way_out}")
