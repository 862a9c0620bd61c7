"""Rows of token ids into right-padded batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BATCH_TOKENS = {"cpu": 2048, "gpu": 16384}
"""Tokens of one forward pass without gradients, where nobody says how many: of a model that gives a number or a vector
a row (1.4 times faster on a CPU, whose cache it fits, than 16384 is with a model of 1.4M parameters)."""
LOGITS_BATCH_TOKENS = {"cpu": 2048, "gpu": 8192}
"""The same where a position has logits over the vocabulary, which take most of the memory."""


def batch_tokens_on(device: torch.device | str, *, logits: bool = False) -> int:
    """`BATCH_TOKENS` of a device, or `LOGITS_BATCH_TOKENS`."""
    table = LOGITS_BATCH_TOKENS if logits else BATCH_TOKENS
    return table["cpu" if torch.device(device).type == "cpu" else "gpu"]


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids and attention mask, (B, T) int64; the mask is 1 on each row's own positions."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return ids, mask


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut row numbers, longest row first, into batches of at most max_tokens padded tokens (one row at least).

    The longest come first so that a batch too large for memory fails at once and not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        rows = max(1, max_tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def batches_by_prompt(lengths: Sequence[int], prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """Cut row numbers into batches of at most max_tokens tokens (one row at least), a prompt counted once a batch.

    Rows of one prompt stand together, parted only where a batch does not hold them all; prompts of similar length stand
    side by side, the longest first.

    Args:
        lengths: of the rows with their prompts.
        prompts: the ids that each row begins with.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        members.setdefault(prompts[number], []).append(number)
    batches: list[list[int]] = []
    left = 0
    for prompt, numbers in members.items():
        whole = len(prompt) + sum(lengths[i] - len(prompt) for i in numbers)
        if left < whole <= max_tokens:
            left = 0
        known = 0
        for i in numbers:
            if lengths[i] - known > left or not batches:
                batches.append([])
                left, known = max_tokens, 0
            batches[-1].append(i)
            left -= lengths[i] - known
            known = len(prompt)
    return batches
