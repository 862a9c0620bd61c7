"""A key-value cache that a decode loop can write in place and shrink cheaply.

transformers' DynamicCache concatenates (copies) every layer's whole cache at each token, and selecting rows copies it
again. Here each layer keeps a buffer with room to grow: a token is one small write, and when rows finish only the rows
that fill their places move. Under autocast it is held in the type that autocast multiplies in: rotary positions make
float32 keys, and each step would cast all of them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf.errors import InputError

ROOM = 64  # tokens of space added when a buffer is full
STATE_INSIDE = ("recurrent_gemma",)  # transformers 5.23: its layers hold their state themselves


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
        key_states, value_states = _as_multiplied(key_states), _as_multiplied(value_states)
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

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes the former row beam_idx[i]; where rows only leave, those that keep their place cost nothing."""
        if not self.is_initialized:
            return
        if len(beam_idx) > len(self.keys):
            self._set(self.keys[beam_idx], self.values[beam_idx], ROOM)
            return
        self.move(*moves(beam_idx), len(beam_idx))

    def move(self, rows: Tensor, former: Tensor, count: int) -> None:
        """`rows` become the former rows `former`, and the first `count` stay."""
        if not self.is_initialized:
            return
        if len(rows):
            for buffer in (self._keys, self._values):
                used = buffer[:, :, : self.keys.shape[2]]
                used[rows] = used[former]
        self._view(count, self.keys.shape[2])

    def _set(self, keys: Tensor, values: Tensor, room: int) -> None:
        rows, heads, length, _ = keys.shape
        for name, old in (("_keys", keys), ("_values", values)):
            buffer = old.new_empty(rows, heads, length + room, old.shape[3])
            buffer[:, :, :length] = old
            setattr(self, name, buffer)
        self._view(rows, length)

    def _view(self, rows: int, length: int) -> None:
        self.keys, self.values = self._keys[:rows, :, :length], self._values[:rows, :, :length]


def _as_multiplied(states: Tensor) -> Tensor:
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


def moves(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Rows i that become another row, keep[i], and these. On a GPU the host waits here for all that is under way: once
    for all layers."""
    rows = (keep != torch.arange(len(keep), device=keep.device)).nonzero().squeeze(1)
    return rows, keep[rows]


def make_cache(config: Any) -> DynamicCache:
    """The cache of a model with this config: buffered layers for full attention, transformers' own for the others."""
    cache = DynamicCache(config=config)
    cache.layers = [BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def joined(parts: Sequence[DynamicCache]) -> DynamicCache:
    """One cache of all rows of several, zeros to the left of shorter ones; several have full attention in every layer.

    A layer after the other, so that no more than one is there twice.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    length = max(part.get_seq_length() for part in parts)
    for number in range(len(first.layers)):
        layers = [cast("BufferedLayer", part.layers[number]) for part in parts]
        keys, values = (
            torch.cat([pad(getattr(layer, name), (0, 0, length - layer.get_seq_length(), 0)) for layer in layers])
            for name in ("keys", "values")
        )
        for part in parts:
            part.layers[number] = layers[0]
        layers[0].keys = layers[0]._keys = keys
        layers[0].values = layers[0]._values = values
    return first


def cache_name(model: PreTrainedModel) -> str:
    """The argument of the model's forward that takes the cache.

    Raises:
        InputError: there is none, or the model does not keep all of its state there.
    """
    under = getattr(model, "get_base_model", None)  # peft
    base = model if under is None else under()
    known = signature(type(base).forward).parameters  # the class's: accelerate wraps that of a 4-bit model
    found = next((name for name in ("past_key_values", "cache_params") if name in known), None)
    if found is None or model.config.model_type in STATE_INSIDE:
        raise InputError(
            f"policy: a model of type {model.config.model_type} keeps its state where answers cannot share it; "
            "sample it through a server, or take another model"
        )
    return found


def is_recurrent(config: Any) -> bool:
    """Whether a layer carries a state from token to token: padding before a prompt may leave traces in it."""
    return any(hasattr(layer, "recurrent_states") for layer in DynamicCache(config=config).layers)


class RepeatedPrefix:
    """n continuations of P prompts, each with its own copy of the prompt's cache: works for every kind of layer.

    Args:
        cache: filled by the prompts; repeated in place.
        name: of the model's argument that takes it.
        mask: (P, T) integer, 0 on left padding.
        repeats: continuations of each prompt; row p * repeats + k continues prompt p.
    """

    def __init__(self, cache: DynamicCache, name: str, mask: Tensor, repeats: int) -> None:
        self.cache, self.name, self.mask = cache, name, mask
        self.select(torch.arange(len(mask), device=mask.device).repeat_interleave(repeats))

    def __len__(self) -> int:
        """Rows."""
        return len(self.mask)

    def arguments(self) -> dict[str, Any]:
        """Of the model's forward, beside input_ids and position_ids."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        # models without any attention take a mask of the new tokens only, and here they have no padding at all
        masked = {} if self.name == "cache_params" else {"attention_mask": self.mask}
        return {self.name: self.cache, "use_cache": True, **masked}

    def select(self, keep: Tensor) -> None:
        """Row i becomes the former row keep[i]."""
        moved = moves(keep) if len(keep) <= len(self) else None
        for layer in self.cache.layers:
            if moved is not None and isinstance(layer, BufferedLayer):
                layer.move(*moved, len(keep))
            else:
                layer.reorder_cache(keep)  # type: ignore[arg-type]  # any tensor of indices does
        self.mask = self.mask[keep]
