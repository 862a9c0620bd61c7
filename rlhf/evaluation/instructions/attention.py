"""Which tokens a model looks at: the largest attention over layers and heads (Llama 2 paper, section 3.3, fig. 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def largest_attention(model: PreTrainedModel, input_ids: Sequence[int]) -> Tensor:
    """(T, T) float32: at [i, j] the largest weight, over layers and heads, with which token i attends to token j <= i.

    The model computes with its "eager" attention meanwhile, the only kind that gives its weights out.
    """
    kind = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([list(input_ids)], device=model.device)
        attentions = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(kind)
    largest: Tensor = torch.stack([layer[0].float().amax(0) for layer in attentions]).amax(0)
    return largest.cpu()


def binned(attention: Tensor, size: int) -> Tensor:
    """(T, T) -> (ceil(T / size),) twice: the mean over blocks of `size` x `size` neighbouring tokens.

    The paper bins too and does not say how (decision 46). In blocks on the diagonal only pairs j <= i count; above it
    is 0.
    """
    length = -(-len(attention) // size) * size
    padded, there = torch.zeros(length, length), torch.zeros(length, length)
    padded[: len(attention), : len(attention)] = attention
    there[: len(attention), : len(attention)] = torch.ones_like(attention).tril()
    blocks = (length // size, size, length // size, size)
    return (padded.view(blocks).sum((1, 3)) / there.view(blocks).sum((1, 3)).clamp(min=1)).float()


def attention_to(attention: Tensor, readers: Sequence[int], read: Sequence[int]) -> float:
    """The mean over the tokens `readers` of the largest weight that any of the tokens `read` gets from them."""
    return float(attention[list(readers)][:, list(read)].amax(1).mean())


def text_span(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> range:
    """The shortest run of tokens, the first of such, whose text holds `text`; ValueError where none does."""
    for end in range(1, len(ids) + 1):
        if text in tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False):
            for start in reversed(range(end)):
                if text in tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False):
                    return range(start, end)
    raise ValueError(f"text_span: no tokens say {text!r}")


def answer_spans(loss_mask: Sequence[bool]) -> list[range]:
    """The tokens of each answer, of a dialogue rendered with train="all"."""
    starts = [i for i, trained in enumerate(loss_mask) if trained and not (i and loss_mask[i - 1])]
    return [range(s, next((i for i in range(s, len(loss_mask)) if not loss_mask[i]), len(loss_mask))) for s in starts]
