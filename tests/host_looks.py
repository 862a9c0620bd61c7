"""Finds, on a CPU, what would have the host wait for all that is under way on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LOOKS = ("_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique2", "unique_consecutive", "unique_dim")
BY_PLACE = ("index", "index_put", "index_put_", "_index_put_impl_")


class HostLooks(TorchDispatchMode):
    """`found`: the names of the operations inside whose result, or its size, the host must know before it goes on: a
    tensor's number, and what a mask picks. `Tensor.tolist` of a tensor on the CPU is no operation, and not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in BY_PLACE and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        if name in LOOKS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))
