"""How many rows to write at once."""

from __future__ import annotations

from collections.abc import Iterable

import psutil
import torch
from transformers import PreTrainedModel

from rlhf.sampling.protocol import SamplingParams

ON_CPU = 512  # rows beyond which nothing is gained there (docs/benchmarks.md)
SHARE = 0.6  # of the free memory
LOGITS = 8  # float32 numbers a row and vocabulary entry while a token is drawn: logits, weights, their sums, the order


def rows_at_once(
    model: PreTrainedModel, prompt_lengths: Iterable[int], num_samples: int, params: SamplingParams
) -> int:
    """Rows whose caches and logits fit into the memory that is free, at least 1; on a CPU no more than pay.

    Reckons every answer as long as it may be and every prompt as long as the longest.
    """
    tokens = params.max_new_tokens + max(prompt_lengths) / num_samples
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    row = tokens * cache_bytes(model) + LOGITS * 4 * vocabulary + 4 * 3 * params.max_new_tokens
    on_cpu = model.device.type == "cpu"
    free = psutil.virtual_memory().available if on_cpu else torch.cuda.mem_get_info(model.device)[0]
    rows = max(1, int(SHARE * free / row))
    return min(rows, ON_CPU) if on_cpu else rows


def cache_bytes(model: PreTrainedModel) -> int:
    """Of one token's keys and values in all layers, as the model stores them."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    cache = model(input_ids=token, use_cache=True).past_key_values
    kept = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))
