"""Log-probabilities of given tokens under a causal LM, float32, independent of padding and batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf.models.batching import batch_tokens_on, batches_by_length, pad_rows
from rlhf.objectives.policy import token_logprobs


def sequence_logprobs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Log-probability of each token given those before it, at temperature 1; gradients flow.

    Args:
        model: causal LM of transformers, wrapped or not.
        input_ids: (B, T) int64, right padded.
        attention_mask: (B, T), 1 on real positions.

    Returns:
        (B, T-1) float32: column t is log p(input_ids[:, t+1] | input_ids[:, :t+1]); 0 where that token is padding.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    return token_logprobs(logits[:, :-1], input_ids[:, 1:]).masked_fill(attention_mask[:, 1:] == 0, 0.0)


@torch.no_grad()
def score_rows(
    model: nn.Module,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    pad_id: int,
    batch_tokens: int | None = None,
    temperature: float = 1.0,
) -> list[Tensor]:
    """Log-probabilities of each row's completion tokens given its prompt, without gradients, dropout off.

    Args:
        model: causal LM of transformers, not wrapped; its train/eval mode is restored.
        rows: (prompt ids, completion ids); the prompt has at least one token.
        pad_id: any valid id; never looked at, padding is masked by position.
        batch_tokens: rows x padded length of one forward pass; None: by the device (`rlhf.models.batching`).
        temperature: above 0; divides the logits before the softmax.

    Returns:
        For each row, in the order given, (len(completion),) float32 on the CPU.
    """
    if any(not prompt for prompt, _ in rows):
        raise ValueError("score_rows: a row's prompt is empty; it needs at least the begin token")
    device = next(model.parameters()).device
    results: list[Tensor] = [torch.zeros(0)] * len(rows)
    training = model.training
    model.eval()
    try:
        most = batch_tokens or batch_tokens_on(device, logits=True)
        for batch in batches_by_length([len(p) + len(c) for p, c in rows], most):
            ids, mask = (t.to(device) for t in pad_rows([[*rows[i][0], *rows[i][1]] for i in batch], pad_id))
            first = min(len(rows[i][0]) for i in batch)
            kept = ids.shape[1] - first + 1  # logits from the position before the first completion token on
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
            scores = token_logprobs(logits[:, :-1], ids[:, first:], temperature).cpu()
            for line, i in enumerate(batch):
                start = len(rows[i][0]) - first
                results[i] = scores[line, start : start + len(rows[i][1])].clone()
    finally:
        model.train(training)
    return results
