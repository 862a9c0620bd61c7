"""A key-value cache that a decode loop can write in place and shrink cheaply.

transformers' DynamicCache concatenates (copies) every layer's whole cache at each token, and selecting rows copies it
again. Here each layer keeps a buffer with room to grow: a token is one small write, and when rows finish only the rows
that fill their places move.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens of space added when a buffer is full


class BufferedLayer(DynamicLayer):
    """One full-attention layer's keys and values: views (rows, heads, length, head_dim) of larger buffers."""

    keys: Tensor
    values: Tensor
    _keys: Tensor
    _values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._set(key_states[:, :, :0], value_states[:, :, :0], ROOM)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, start = self.keys.shape[0], self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._keys.shape[2]:
            self._set(self.keys, self.values, end - start + ROOM)
        self._keys[:rows, :, start:end] = key_states
        self._values[:rows, :, start:end] = value_states
        self._view(rows, end)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._set(self.keys, self.values, ROOM, repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes the former row indices[i]; rows that stay where they are cost nothing."""
        if not self.is_initialized:
            return
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        if len(moved):
            for buffer in (self._keys, self._values):
                used = buffer[:, :, : self.keys.shape[2]]
                used[moved] = used[indices[moved]]
        self._view(len(indices), self.keys.shape[2])

    def _set(self, keys: Tensor, values: Tensor, room: int, repeats: int = 1) -> None:
        rows, heads, length, _ = keys.shape
        for name, old in (("_keys", keys), ("_values", values)):
            buffer = old.new_empty(rows * repeats, heads, length + room, old.shape[3])
            buffer[:, :, :length].unflatten(0, (rows, repeats)).copy_(old.unsqueeze(1))
            setattr(self, name, buffer)
        self._view(rows * repeats, length)

    def _view(self, rows: int, length: int) -> None:
        self.keys, self.values = self._keys[:rows, :, :length], self._values[:rows, :, :length]


def make_cache(config: Any) -> DynamicCache:
    """The cache of a model with this config: buffered layers for full attention, transformers' own for the others."""
    cache = DynamicCache(config=config)
    cache.layers = [BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RepeatedPrefix:
    """n continuations of P prompts, each with its own copy of the prompt's cache: works for every kind of layer.

    Args:
        cache: filled by the prompts; repeated in place.
        mask: (P, T) integer, 0 on left padding.
        repeats: continuations of each prompt; row p * repeats + k continues prompt p.
    """

    def __init__(self, cache: DynamicCache, mask: Tensor, repeats: int) -> None:
        cache.batch_repeat_interleave(repeats)
        self.cache, self.mask = cache, mask.repeat_interleave(repeats, 0)

    def __len__(self) -> int:
        """Rows."""
        return len(self.mask)

    def arguments(self) -> dict[str, Any]:
        """Of the model's forward, beside input_ids and position_ids."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return {"past_key_values": self.cache, "attention_mask": self.mask, "use_cache": True}

    def select(self, keep: Tensor) -> None:
        """Row i becomes the former row keep[i]."""
        self.cache.batch_select_indices(keep)
        self.mask = self.mask[keep]
