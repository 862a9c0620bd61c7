"""Attention of many continuations over ONE copy of their prompt.

Repeating a prompt's cache K times makes every step of decoding read K copies of the same keys and values, and reading
is what decoding costs. Here the queries of a prompt's continuations are put together and meet the prompt's keys in one
matrix product (the idea of Hydragen, arXiv 2402.05099); each row's own tokens live in a cache of their own; one softmax
goes over both. Same numbers as attention over the repeated cache, up to rounding.

Rows that began together make one SharedPrefix; a forward pass takes any number of them, one after the other, at
different lengths and without a mask: everything but attention sees only tokens side by side.

Registered as an attention function of transformers; used where all layers are plain full attention under sdpa.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from rlhf.models.packing import has_plain_attention
from rlhf.sampling.decoding.cache import BufferedLayer, moves

NAME = "rlhf_shared_prefix"


class SharedPrefix:
    """P prompts' caches and n continuations of them, all of one length.

    Args:
        cache: filled by the prompts, (P, kv heads, T, head_dim) a layer.
        mask: (P, T) integer, 0 on left padding.
        repeats: continuations of each prompt; row p * repeats + k continues prompt p.
    """

    def __init__(self, cache: DynamicCache, mask: Tensor, repeats: int) -> None:
        layers = cast("list[BufferedLayer]", cache.layers)
        self.keys, self.values = [layer.keys for layer in layers], [layer.values for layer in layers]
        self.own = [BufferedLayer() for _ in cache.layers]
        hidden = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        self.bias = hidden.masked_fill(mask == 0, -torch.inf)[:, None, None, :]
        rows = torch.arange(mask.shape[0] * repeats, device=mask.device)
        self.prompt, self.slot, self.width = rows // repeats, rows % repeats, repeats
        self.in_line = repeats == 1  # row p continues prompt p, and nothing has to be put together

    def __len__(self) -> int:
        """Rows."""
        return len(self.prompt)

    @property
    def own_length(self) -> int:
        """Tokens that each row has beyond its prompt, in the cache."""
        return self.own[-1].get_seq_length()

    def select(self, keep: Tensor) -> None:
        """Row i becomes the former row keep[i]."""
        moved = moves(keep)
        for layer in self.own:
            layer.move(*moved, len(keep))
        self.prompt, self.slot, self.in_line = self.prompt[keep], self.slot[keep], False
        if 2 * len(keep) <= len(self.bias) * self.width:
            self._repack()

    def _repack(self) -> None:
        """Drop prompts without rows and number each prompt's rows afresh."""
        alive, self.prompt, counts = self.prompt.unique(return_inverse=True, return_counts=True)
        if len(alive) < len(self.bias):
            self.bias = self.bias[alive]
            self.keys, self.values = [k[alive] for k in self.keys], [v[alive] for v in self.values]
        order = self.prompt.argsort(stable=True)
        first = counts.cumsum(0) - counts
        self.slot = torch.empty_like(self.slot)
        self.slot[order] = torch.arange(len(order), device=order.device) - first[self.prompt[order]]
        self.width = int(counts.max())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (n, heads, 1, d); key, value (n, kv heads, 1, d), of the rows' newest tokens -> (n, 1, heads, d)."""
        key, value = self.own[layer].update(key, value)
        rows, heads, _, size = query.shape
        query = (query * scaling).to(key.dtype).view(rows, key.shape[1], -1, size)
        over_prompt = self._gather(
            self._spread(query) @ self.keys[layer].transpose(2, 3) + self.bias.to(query.dtype), query
        )
        own = query @ key.transpose(2, 3)
        weights = torch.cat([over_prompt, own], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
        over_prompt, own = weights.split([over_prompt.shape[-1], own.shape[-1]], -1)
        output: Tensor = self._gather(self._spread(over_prompt) @ self.values[layer], query) + own @ value
        return output.reshape(rows, 1, heads, size)

    def _spread(self, rows: Tensor) -> Tensor:
        """(n, kv heads, group, x) by row -> (P, kv heads, width * group, x) by prompt, anything where no row is."""
        if self.in_line:
            return rows
        prompts, (_, kv_heads, group, last) = len(self.bias), rows.shape
        spread = rows.new_empty(prompts, self.width, kv_heads, group, last)
        spread[self.prompt, self.slot] = rows
        return spread.transpose(1, 2).reshape(prompts, kv_heads, self.width * group, last)

    def _gather(self, spread: Tensor, like: Tensor) -> Tensor:
        """The way back."""
        if self.in_line:
            return spread
        prompts, kv_heads, _, last = spread.shape
        return spread.view(prompts, kv_heads, self.width, like.shape[2], last).transpose(1, 2)[self.prompt, self.slot]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefixes: Sequence[SharedPrefix] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if shared_prefixes is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    sizes = [len(prefix) for prefix in shared_prefixes]
    parts = zip(shared_prefixes, *(tensor.split(sizes) for tensor in (query, key, value)), strict=True)
    return torch.cat([prefix.attend(module.layer_idx, *part, scaling) for prefix, *part in parts]), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def sharing(model: PreTrainedModel) -> Iterator[bool]:
    """Switch the model to this attention where it can, and back; yields whether it could."""
    caches_latents = (
        getattr(model.config, "kv_lora_rank", None) is not None
    )  # what attention sees is not what is cached
    if caches_latents or not has_plain_attention(model):
        yield False
        return
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield True
    finally:
        model.config._attn_implementation = before
