"""Refuses tensors that would broadcast: `[n, 1] - [n]` is an `[n, n]` loss, silently."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def require_same_shape(**tensors: Tensor | None) -> None:
    """Raise ValueError naming the tensors whose shape differs from the first one's; None is skipped."""
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        raise ValueError(
            "shapes must be the same, got " + ", ".join(f"{name} {shape}" for name, shape in given.items())
        )
