"""K answers a prompt from a model in this process.

Where it departs from `generate(num_return_sequences=K)`: a prompt is run once and its cache repeated K times; finished rows
leave the batch; the cache is written in place; and a sample's draws depend on (seed, key, index) alone, so batch size, the
order of the prompts and the number of processes change no sample. (The model's own arithmetic may round differently in
another batch; a draw that falls within that rounding of a token's edge can still go to its neighbour.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.sampling.cache import make_cache
from rlhf.sampling.drawing import draw, uniforms
from rlhf.sampling.protocol import Sample, SamplingParams

if TYPE_CHECKING:
    from rlhf.conversation import Renderer


@dataclass(frozen=True)
class _Group:
    """Prompts that share a batch, and the range of sample indices drawn for each of them."""

    prompts: list[int]
    indices: range


class InProcessSampler:
    """A Sampler over a causal LM.

    Args:
        model: the bare model (not wrapped by DDP or DeepSpeed), on its device. Put into eval mode while it samples.
        renderer: turns conversations into ids and knows the ids that end an answer.
        batch_size: rows at once, prompts x samples.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer, batch_size: int = 256) -> None:
        self.model = model
        self.renderer = renderer
        self.batch_size = batch_size

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """Draw `num_samples` answers for each prompt; see `Sampler`. An answer that reaches the model's context is cut there.

        Raises:
            InputError: a prompt leaves no room for an answer in the model's context; nothing was sampled then.
        """
        keys = range(len(prompts)) if keys is None else keys
        rendered = [self.renderer.prompt_ids(prompt) for prompt in prompts]
        context = _context(self.model)
        for prompt, ids in zip(prompts, rendered, strict=True):
            if len(ids) >= context:
                raise InputError(
                    f"prompt: {prompt[-1]['content'][:60]!r} has {len(ids)} tokens with its history, but the model's context "
                    f"is {context}; shorten it or leave it out"
                )
        results: list[list[Sample]] = [[] for _ in prompts]
        with _eval_mode(self.model), _progress(len(prompts) * num_samples, self.batch_size) as progress:
            for group in _groups(rendered, num_samples, self.batch_size):
                ids = [rendered[p] for p in group.prompts]
                samples = [(keys[p], i) for p in group.prompts for i in group.indices]
                drawn = self._decode(ids, samples, params, context)
                for row, sample in enumerate(drawn):
                    results[group.prompts[row // len(group.indices)]].append(sample)
                progress.update(len(drawn))
        return results

    def _decode(
        self, prompts: list[list[int]], samples: list[tuple[int, int]], params: SamplingParams, context: int
    ) -> list[Sample]:
        """One batch: prompts (P), samples (P x K) with prompt p's rows at p*K .. p*K+K-1."""
        device = self.model.device
        repeats = len(samples) // len(prompts)
        steps = min(params.max_new_tokens, context - min(map(len, prompts)))
        ids, mask = _left_padded(prompts, self.renderer.pad_token_id, steps, device)
        width = ids.shape[1]
        cache = make_cache(self.model.config)
        output = self.model(
            input_ids=ids,
            attention_mask=mask[:, :width],
            position_ids=(mask[:, :width].cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(repeats)
        logits, mask = (tensor.repeat_interleave(repeats, 0) for tensor in (output.logits[:, -1], mask))
        lengths = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(repeats)
        ends = torch.tensor(sorted(self.renderer.end_token_ids), device=device)
        draws = uniforms(params.seed, samples, steps).to(device)

        # full size, by sample
        tokens = torch.zeros(len(samples), steps, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(samples), device=device)
        counts = torch.zeros(len(samples), dtype=torch.long, device=device)
        finished = torch.zeros(len(samples), dtype=torch.bool, device=device)
        # by row of the batch, which shrinks
        rows = torch.arange(len(samples), device=device)
        limits = (context - lengths).clamp(max=params.max_new_tokens)
        for step in range(steps):
            token, logprob = draw(logits, draws[rows, step], params)
            ended = torch.isin(token, ends)
            tokens[rows, step] = token
            logprobs[rows] += logprob
            counts[rows] = step + 1
            finished[rows] = ended
            done = ended | (limits <= step + 1)
            if done.any():
                keep = _fill_holes(done)
                if not len(keep):
                    break
                cache.batch_select_indices(keep)
                rows, token, mask, lengths, limits = (t[keep] for t in (rows, token, mask, lengths, limits))
            logits = self.model(
                input_ids=token.unsqueeze(1),
                attention_mask=mask[:, : width + step + 1],
                position_ids=(lengths + step).unsqueeze(1),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return [
            Sample(self.renderer.answer_text(row[:count]), tuple(row[:count]), logprob, ended)
            for row, count, logprob, ended in zip(
                tokens.tolist(), counts.tolist(), logprobs.tolist(), finished.tolist(), strict=True
            )
        ]


def _groups(rendered: Sequence[Sequence[int]], num_samples: int, batch_size: int) -> Iterator[_Group]:
    """Prompts of similar length together, at most batch_size rows a group; samples of one prompt are cut only above that."""
    order = sorted(range(len(rendered)), key=lambda p: -len(rendered[p]))
    per_group = max(1, batch_size // num_samples)
    for start in range(0, len(order), per_group):
        for first in range(0, num_samples, batch_size):
            yield _Group(order[start : start + per_group], range(first, min(first + batch_size, num_samples)))


def _left_padded(prompts: list[list[int]], pad: int, room: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids (P, W) with the prompts at the right edge, and their mask (P, W + room): 1 on every token, also on those to come."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.ones(len(prompts), width + room, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0
    return ids.to(device), mask.to(device)


def _fill_holes(done: Tensor) -> Tensor:
    """Former row for each of the rows that stay: they keep their places, the last ones fill the holes."""
    kept = int((~done).sum())
    keep = torch.arange(kept, device=done.device)
    keep[done[:kept]] = kept + (~done[kept:]).nonzero().squeeze(1)
    return keep


def _context(model: PreTrainedModel) -> int:
    """Longest sequence the model takes."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 30)


@contextmanager
def _eval_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _progress(rows: int, batch_size: int) -> tqdm:
    """Shown on one process a machine, for more than a batch of rows."""
    quiet = rows <= batch_size or os.environ.get("LOCAL_RANK", "0") != "0"
    return tqdm(total=rows, desc="sampling", unit="answer", disable=quiet, mininterval=1.0, leave=False)
