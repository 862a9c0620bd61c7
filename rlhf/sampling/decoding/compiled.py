"""Decoding steps of one fixed shape, compiled: on a GPU each is one captured graph.

A small model on a GPU spends a step waiting for the CPU to start its kernels; a captured graph starts them all at once.
It wants the same tensors at the same addresses every time. So every place of the batch has its own stretch of one
cache, its prompt included, each row writes at its own position, and places without a row are computed too. What is
given up for it: the prompt's cache is copied for each of its answers, and attention reads the room of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from rlhf.errors import InputError

BUCKET = 128  # lengths are rounded up to its multiples, rows to powers of two: other calls find their shape compiled


def step_shape(places: int, longest: int) -> tuple[int, int]:
    """(rows, length) of the steps for this many places and a longest sequence of this many tokens, prompt included."""
    return 1 << (places - 1).bit_length(), -(-longest // BUCKET) * BUCKET


class CompiledStep:
    """The logits after each place's newest token.

    Args:
        model: in eval mode, all its layers of plain full attention.
        shape: of `step_shape`.
    """

    def __init__(self, model: PreTrainedModel, shape: tuple[int, int]) -> None:
        rows, length = self.shape = shape
        self._model = model
        self._ids, self._positions, row = torch.zeros(3, rows, dtype=torch.long, device=model.device)
        self._columns = torch.arange(length, device=model.device)
        row.copy_(torch.arange(rows))
        self._cache = DynamicCache(config=model.config)
        self._layers = [_PlacedLayer(row, self._positions, length) for _ in self._cache.layers]
        self._cache.layers = list(self._layers)
        mode = "reduce-overhead" if model.device.type == "cuda" else None
        self._step = torch.compile(self._forward, dynamic=False, mode=mode)

    def begin(self, cache: DynamicCache, lengths: Sequence[int], places: Tensor) -> None:
        """Copy left-padded prompts' cache to their answers' places.

        Args:
            cache: (P, kv heads, T, head_dim) a layer.
            lengths: of the P prompts.
            places: (P, K).
        """
        for layer, filled in zip(self._layers, cache.layers, strict=True):
            layer.begin(filled, lengths, places)

    def logits(self, ids: Tensor, places: Tensor, positions: Tensor) -> Tensor:
        """ids, places, positions (n,): row r's newest token, where it is written and where it stands -> (n, V).

        Raises:
            InputError: the step cannot be compiled here.
        """
        self._ids[places], self._positions[places] = ids, positions
        try:
            return self._step()[places]
        except torch._dynamo.exc.BackendCompilerFailed as error:
            cause = str(error.inner_exception).splitlines()[0]
            raise InputError(f"compile: the model's step cannot be compiled here ({cause}); leave it out") from error

    def _forward(self) -> Tensor:
        seen: Tensor = self._columns <= self._positions[:, None]
        logits: Tensor = self._model(
            input_ids=self._ids[:, None],
            position_ids=self._positions[:, None],
            attention_mask=seen[:, None, None, :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]


class PlacedRows:
    """A cohort's rows, of which a CompiledStep holds the cache by place: nothing moves when some leave."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        """Rows."""
        return self._count

    def select(self, keep: Tensor) -> None:
        """Row i becomes the former row keep[i]."""
        self._count = len(keep)


class _PlacedLayer(CacheLayerMixin):
    """Keys and values (rows, kv heads, length, head_dim); a step writes each row at its own position."""

    is_compileable = True
    keys: Tensor
    values: Tensor

    def __init__(self, row: Tensor, positions: Tensor, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._row, self._positions, self._length = row, positions, length

    def begin(self, filled: Any, lengths: Sequence[int], places: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(filled.keys, filled.values)
        for buffer, source in ((self.keys, filled.keys), (self.values, filled.values)):
            for prompt, (length, place) in enumerate(zip(lengths, places, strict=True)):
                buffer[place, :, :length] = source[prompt, :, source.shape[2] - length :]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            like.new_zeros(len(self._row), like.shape[1], self._length, like.shape[3])
            for like in (key_states, value_states)
        )
        for buffer in (self.keys, self.values):
            torch._dynamo.mark_static_address(buffer)  # or no graph is captured that writes into it
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys[self._row, :, self._positions] = key_states[:, :, 0]
        self.values[self._row, :, self._positions] = value_states[:, :, 0]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0  # the caller names positions and mask

    def get_max_length(self) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length, 0
