"""Tensors without data: models of them, and how many bytes of them are alive."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def make_fake(model: nn.Module) -> None:
    """Move a model from the meta device to a CPU of fake tensors; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and not isinstance(old, FakeTensor):
                fresh = nn.Parameter(torch.empty_like(old, device="cpu"), requires_grad=old.requires_grad)
                module._parameters[name] = made.setdefault(id(old), fresh)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


class Live(TorchDispatchMode):
    """Adds up the storages that are alive, of tensors that operations inside have made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def leave_out(self, *models: nn.Module | None) -> None:
        """Take no note of these models' weights."""
        for model in models:
            for tensor in [] if model is None else [*model.parameters(), *model.buffers()]:
                self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                size = storage.nbytes()
                self._known.add(storage)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, size)
        return found

    def _freed(self, size: int) -> None:
        self.now -= size
