"""Batches made on the CPU while the device works on the ones before, and moved to it without a wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in their order; while one is used, a thread makes the next."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]


def on_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The batch on the device, its tensors and what else has `to`; see `move`."""
    return {name: move(part, device) if isinstance(part, Tensor) else part.to(device) for name, part in batch.items()}


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device. To a GPU it goes from pinned memory: the host waits neither for the copy nor for what
    is under way there."""
    if tensor.is_cpu and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
