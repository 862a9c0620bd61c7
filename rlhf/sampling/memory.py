"""How many rows to write at once."""

from __future__ import annotations

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel

from rlhf.launch import processes_here
from rlhf.sampling.decoding.cache import make_cache
from rlhf.sampling.protocol import SamplingParams

ON_CPU = 512  # more gain nothing there: 512 rows were faster than 256 and than 768 (1M parameters, one core)
SHARE = 0.6  # of the free memory
LOGITS = 32  # bytes per row and vocabulary entry while a token is drawn: logits, weights, their running sums, an order


def rows_at_once(model: PreTrainedModel, longest: int, num_samples: int, params: SamplingParams) -> int:
    """Rows whose caches and logits fit into the memory that is free, a power of two; on a CPU no more than pay.

    Every answer is taken to become as long as it may, every prompt to have `longest` tokens. Processes that sample side
    by side on a CPU share its memory. A power of two, so that a little more or less free memory leaves the batches as
    they are, and with them the rounding.
    """
    config = model.config.get_text_config(decoder=True)
    cached = params.max_new_tokens + longest / num_samples
    row = cached * token_bytes(config, model.dtype.itemsize) + LOGITS * config.vocab_size
    on_cpu = model.device.type == "cpu"
    free = psutil.virtual_memory().available / processes_here() if on_cpu else _free_on_gpu(model.device)
    rows = 1 << max(1, int(SHARE * free / row)).bit_length() - 1
    return min(rows, ON_CPU) if on_cpu else rows


def _free_on_gpu(device: torch.device) -> int:
    """Bytes that no process holds, and those that torch has kept of tensors that are gone: it gives them out again."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def token_bytes(config: PretrainedConfig, itemsize: int) -> int:
    """Of one token's keys and values in all layers, as the model's config has them; 0 without attention.

    Args:
        itemsize: bytes of a number of the cache.
    """
    config = config.get_text_config(decoder=True)
    attending = int(getattr(config, "num_attention_heads", None) or 0)
    heads = int(getattr(config, "num_key_value_heads", None) or attending)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // max(1, attending))
    return 2 * len(make_cache(config).layers) * heads * size * itemsize
