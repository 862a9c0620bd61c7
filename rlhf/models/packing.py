"""Rows that begin alike, computed as one packed row: what they share once, and no padding.

A pair's two dialogues share the prompt, and so do K answers to one prompt. Every layer but attention looks at one token
at a time, so the model is given a single row of N tokens: each group's common prefix, then each row's own tokens, with
the positions they have in their own row. Attention alone must know who sees whom: prefixes attend causally to
themselves, a row's own tokens to their group's prefix and to the earlier own ones. Same numbers as separate rows, up to
rounding; gradients flow through the shared part. Where only some tokens' last states are asked for (the rows' last, or
those before an answer token), the last layer gives every token its key and value and computes the rest for these alone.

Rows are packed on the CPU, where their ids and masks come from, and `PackedRows.to` moves them: on a GPU every number
that packing asks for would have the host wait for all that is under way. The forward pass asks for none.

Registered as an attention function of transformers, which is sdpa for every call without `packed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from rlhf.training.feeding import move

NAME = "rlhf_packed_rows"
TOKENWISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
MOST_SEEN = 512
"""Tokens beyond which attention keeps no weights for the backward pass: they grow with the square."""
NOT_PLAIN = ("doge", "nemotron")  # transformers 5.23: one rewrites the mask, one drops arguments before attention


class Block(NamedTuple):
    """Attention of some tokens of similar rows; places are numbers in the packed row, padding has place 0.

    queries (b, L) int64: places of the tokens that attend. seen (b, M) int64: of those that they may attend to. columns
    (b, L) int64: the last one in `seen` that each attends to; None: the queries themselves are seen, each up to its own
    place.
    """

    queries: Tensor
    seen: Tensor
    columns: Tensor | None

    def mask(self) -> Tensor | None:
        """(b, 1, L, M) bool: what each token attends to. Made for every layer anew: nothing else here is as large."""
        if self.columns is None:
            return None
        return (torch.arange(self.seen.shape[1], device=self.seen.device) <= self.columns[:, :, None])[:, None]


@dataclass(frozen=True)
class PackedRows:
    """B rows as one row of N tokens.

    Args:
        input_ids: (1, N) int64.
        position_ids: (1, N) int64, positions in the tokens' own rows.
        blocks: together their queries hold each of the N tokens once.
        lengths: of the rows, where they stand one after the other and share nothing; else None. On the CPU attention
            is then computed row by row, which copies and pads nothing (a GPU would rather have few large kernels).
        order: (N,) int64, where token n stands in all the blocks' flattened queries.
        places: (B, T) int64, place of each row's token at each position; 0 on padding.
        read: (M,) int64, places of the tokens whose last states are read, row by row.
        alone: the same places in ascending order, each once.
    """

    input_ids: Tensor
    position_ids: Tensor
    blocks: list[Block]
    lengths: list[int] | None
    order: Tensor
    places: Tensor
    read: Tensor
    alone: Tensor

    def to(self, device: torch.device | str) -> PackedRows:
        """The same on a device, in one copy, for which the host does not wait."""
        if self.order.device == torch.device(device):
            return self
        leaves, tree = tree_flatten(vars(self))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        moved = move(torch.cat([tensor.flatten() for tensor in tensors]), device)
        parts = iter(moved.split([tensor.numel() for tensor in tensors]))
        leaves = [next(parts).view(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return PackedRows(**tree_unflatten(leaves, tree))

    def inputs(self) -> dict[str, Any]:
        """Arguments of a forward pass over the packed row, without a cache."""
        # the mask is unused; four-dimensional, so that transformers makes none of (N, N)
        mask = self.order.view(1, 1, 1, -1)
        ids = {"input_ids": self.input_ids, "position_ids": self.position_ids, "attention_mask": mask}
        return {**ids, "use_cache": False, "packed": self}

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attention of the N tokens: query (1, heads, N, d), key and value (1, kv heads, N, d) -> (1, N, heads, d)."""
        outputs = []
        if self.lengths is not None and query.is_cpu:
            for q, k, v in zip(*(tensor.split(self.lengths, 2) for tensor in (query, key, value)), strict=True):
                outputs.append(attention_of_rows(module, q, k, v, None, **options))
            return torch.cat(outputs, 1)
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        for block in self.blocks:
            part = (_rows(query, block.queries), _rows(key, block.seen), _rows(value, block.seen))
            outputs.append(attention_of_rows(module, *part, block.mask(), **options).flatten(0, 1))
        return _take(torch.cat(outputs), self.order)[None]


def pack_rows(
    input_ids: Tensor, attention_mask: Tensor, groups: Tensor | None = None, read: Tensor | None = None
) -> PackedRows:
    """Pack right-padded rows on the CPU, which do not see each other (decision 1).

    Those of a group share their longest common prefix, but each keeps one token of its own.

    Args:
        input_ids: (B, T) int64.
        attention_mask: (B, T), 1 on real positions, at least one a row.
        groups: (B,) int64, any numbers; rows with the same number are one group. None: each row is one.
        read: (B, T) bool, real positions whose last states are read; None: each row's last.
    """
    rows, columns = (torch.arange(size, device=input_ids.device) for size in input_ids.shape)
    _, group, sizes = (rows if groups is None else groups).unique(return_inverse=True, return_counts=True)
    first = torch.full_like(sizes, len(rows)).scatter_reduce(0, group, rows, "amin")
    lengths = (attention_mask != 0).sum(-1)
    alike = (input_ids == input_ids[first[group]]) & (columns < lengths[:, None] - 1)
    common = alike.long().cumprod(-1).sum(-1).masked_fill(sizes[group] == 1, 0)
    shared = torch.full_like(sizes, len(columns)).scatter_reduce(0, group, common, "amin")
    alone = lengths - shared[group]

    # where each token of each row stands in the packed row: all groups' prefixes first, then all rows' own tokens
    in_prefix = columns < shared[:, None]
    in_own = (columns >= shared[group][:, None]) & (columns < lengths[:, None])
    prefixes = _numbered(in_prefix)
    text = torch.where(in_own, _numbered(in_own) + in_prefix.sum(), prefixes[group])  # (B, T), 0 on padding

    blocks, present = [], []
    for some, longest in _similar(shared):
        queries = prefixes[some, :longest]
        blocks.append(Block(queries, queries, None))
        present.append(in_prefix[some, :longest])
    for some, longest in _similar(alone):
        start = shared[group[some]][:, None]
        positions = (start + columns[:longest]).clamp(max=len(columns) - 1)
        seen = text[some, : int(lengths[some].max())]
        blocks.append(Block(text[some].gather(1, positions), seen, positions if start.any() else None))
        present.append(columns[:longest] < alone[some][:, None])

    asked = torch.cat([block.queries[here] for block, here in zip(blocks, present, strict=True)])
    order = torch.empty_like(asked)
    order[asked] = torch.cat([here.flatten() for here in present]).nonzero().squeeze(1)
    asked_for = text[rows, lengths - 1] if read is None else text[read]
    return PackedRows(
        input_ids=torch.cat([input_ids[first][in_prefix], input_ids[in_own]])[None],
        position_ids=torch.cat([columns.expand_as(here)[here] for here in (in_prefix, in_own)])[None],
        blocks=blocks,
        lengths=None if shared.any() else lengths.tolist(),
        order=order,
        places=text,
        read=asked_for,
        alone=asked_for.unique(),
    )


def _numbered(mask: Tensor) -> Tensor:
    """Number its true places from 0 on, row by row; 0 elsewhere."""
    return (mask.flatten().cumsum(0).view_as(mask) - 1).masked_fill(~mask, 0)


def _similar(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    """(rows, longest of them): longest first, cut where one is below 3/4 of the longest, so that little is padding."""
    order = lengths.argsort(descending=True, stable=True)
    ordered = lengths[order].tolist()
    start = 0
    for end in range(1, len(ordered) + 1):
        if ordered[start] and (end == len(ordered) or 4 * ordered[end] < 3 * ordered[start]):
            yield order[start:end], ordered[start]
            start = end


def packed_states(backbone: nn.Module, packed: PackedRows) -> Tensor:
    """The backbone's last hidden states, (N, H), of which those at `packed.read` alone count."""
    with alone_in_last_layer(backbone, packed.alone):
        states: Tensor = backbone(**packed.inputs()).last_hidden_state[0]
    return states


@contextmanager
def alone_in_last_layer(backbone: nn.Module, places: Tensor) -> Iterator[None]:
    """The last layer's token-wise parts compute the columns at `places` alone, and give 0 for the others.

    For a caller that reads the last states of those columns alone: the keys and values that they see come from other
    parts of the layer.

    Args:
        places: (M,) int64 columns of the batch (packed rows have one row), each once.
    """
    size: list[int] = []

    def cut(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        size[:] = inputs[0].shape[:2]
        return inputs[0].index_select(1, places)

    def spread(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return output.new_zeros(*size, output.shape[-1]).index_copy(1, places, output)

    hooks = []
    for part in _tokenwise_parts(backbone):
        hooks += [part.register_forward_pre_hook(cut), part.register_forward_hook(spread)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tokenwise_parts(backbone: Any) -> list[nn.Module]:
    """Of the last layer, those that look at one token at a time; none where the layer is built otherwise.

    Nor with gradient checkpointing, which runs the layer once more, in the backward pass.
    """
    runs_twice = backbone.training and any(
        getattr(part, "gradient_checkpointing", False) for part in backbone.modules()
    )
    if runs_twice or not hasattr(backbone, "layers"):
        return []
    parts = {name: part for name, part in backbone.layers[-1].named_modules() if name in TOKENWISE}
    return list(parts.values()) if hasattr(parts.get("mlp"), "down_proj") else []


def has_plain_attention(model: PreTrainedModel) -> bool:
    """Whether every layer is full causal attention under sdpa or ours, called through transformers' interface."""
    config = model.config
    layers = DynamicCache(config=config).layers
    return (
        config._attn_implementation in ("sdpa", NAME)
        and bool(model._supports_attention_backend)
        and config.model_type not in NOT_PLAIN
        and not (model._is_stateful or config.is_encoder_decoder)
        and getattr(config, "is_causal", True)
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
    )


def enable_packing(model: PreTrainedModel) -> bool:
    """Switch the model to this attention where it can take packed rows; returns whether it can."""
    if has_plain_attention(model):
        model.config._attn_implementation = NAME
    return bool(model.config._attn_implementation == NAME)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: PackedRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    if packed is None:
        options |= {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return packed.attend(module, query, key, value, dropout=dropout, scaling=scaling), None


def attention_of_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Attention of rows that do not see each other, by sdpa; on a CPU in bfloat16 by two matrix products.

    There sdpa's backward pass (torch 2.13) takes two to three times as long as theirs. The softmax between them is in
    float32, as in transformers' eager attention.

    Args:
        query: (b, heads, L, d). key, value: (b, kv heads, M, d).
        mask: (b, 1, L, M) bool, what each attends to; None: L is M, and each sees up to its own place.

    Returns:
        (b, L, heads, d).
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if not query.is_cpu or dtype != torch.bfloat16 or dropout or key.shape[2] > MOST_SEEN:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=True
        )[0]
    (rows, heads, length, size), (kv_heads, seen) = query.shape, key.shape[1:3]
    if mask is None:
        mask = torch.ones(1, 1, length, seen, dtype=torch.bool).tril()
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, kv_heads, -1, size)
    scores = (grouped @ key.transpose(2, 3)).view(rows, kv_heads, -1, length, seen)
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1, dtype=torch.float32).to(dtype)
    return (weights.view(rows, kv_heads, -1, seen) @ value).view(rows, heads, length, -1).transpose(1, 2)


def _take(tokens: Tensor, places: Tensor) -> Tensor:
    """tokens (N, heads, d) at places (...,) -> (..., heads, d); an embedding's gradient is the quickest to add up."""
    taken: Tensor = embedding(places, tokens.flatten(1)).unflatten(-1, tokens.shape[1:])
    return taken


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """tokens (N, heads, d) at places (rows, length) -> (rows, heads, length, d)."""
    return _take(tokens, places).transpose(1, 2)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
