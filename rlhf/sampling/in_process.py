"""K answers a prompt from a model in this process.

Where it departs from `generate(num_return_sequences=K)`: a prompt is run once and its cache shared by its K answers;
finished rows leave the batch; the cache is written in place; and a sample's draws depend on (seed, key, index) alone:
batch size, the order of the prompts and the number of processes change no sample. (The model's own arithmetic may round
differently in another batch: a draw within that rounding of a token's edge, about one in a million, can still move.)
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
from rlhf.sampling.cache import RepeatedPrefix, make_cache
from rlhf.sampling.drawing import draw, uniforms
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.sampling.shared_prefix import NAME as SHARED
from rlhf.sampling.shared_prefix import SharedPrefix, sharing

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
        """Draw `num_samples` answers for each prompt; see `Sampler`. An answer is cut where the model's context ends.

        Raises:
            InputError: a prompt leaves no room for an answer in the model's context; nothing was sampled then.
        """
        keys = range(len(prompts)) if keys is None else keys
        if len(keys) != len(prompts):
            raise ValueError(f"keys: {len(keys)} for {len(prompts)} prompts")
        rendered = self.renderer.prompts(prompts)
        context = _context(self.model)
        for prompt, ids in zip(prompts, rendered, strict=True):
            if len(ids) >= context:
                raise InputError(
                    f"prompt: {prompt[-1]['content'][:60]!r} has {len(ids)} tokens with its history, but the model's "
                    f"context is {context}; shorten it or leave it out"
                )
        results: list[list[Sample]] = [[] for _ in prompts]
        total = len(prompts) * num_samples
        with _eval_mode(self.model), sharing(self.model), _progress(total, self.batch_size) as progress:
            for group in _groups(rendered, num_samples, self.batch_size):
                samples = [(keys[p], i) for p in group.prompts for i in group.indices]
                drawn = self._decode([rendered[p] for p in group.prompts], samples, params, context)
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
        logits, prefix = self._prefill(prompts, repeats)
        lengths = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(repeats)
        limits = (context - lengths).clamp(max=steps)
        ends = torch.tensor(sorted(self.renderer.end_token_ids), device=device)
        draws = uniforms(params.seed, samples, steps).to(device)
        tokens = torch.zeros(len(samples), steps, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(samples), device=device)
        counts = torch.zeros(len(samples), dtype=torch.long, device=device)
        finished = torch.zeros(len(samples), dtype=torch.bool, device=device)
        rows = torch.arange(len(samples), device=device)  # samples still being drawn; shrinks with lengths and limits
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
                prefix.select(keep)
                rows, token, lengths, limits = (t[keep] for t in (rows, token, lengths, limits))
            logits = self.model(
                input_ids=token[:, None],
                position_ids=(lengths + step)[:, None],
                use_cache=True,
                logits_to_keep=1,
                **prefix.arguments(),
            ).logits[:, -1]
        return [
            Sample(self.renderer.answer_text(row[:count]), tuple(row[:count]), logprob, ended)
            for row, count, logprob, ended in zip(
                tokens.tolist(), counts.tolist(), logprobs.tolist(), finished.tolist(), strict=True
            )
        ]

    def _prefill(self, prompts: list[list[int]], repeats: int) -> tuple[Tensor, SharedPrefix | RepeatedPrefix]:
        """Run the prompts once: the logits (P x repeats, V) of the first answer token, and what the rest builds on."""
        ids, mask = _left_padded(prompts, self.renderer.pad_token_id)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        cache = make_cache(self.model.config)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if self.model.config._attn_implementation == SHARED:
            prefix: SharedPrefix | RepeatedPrefix = SharedPrefix(self.model.config, cache, mask, repeats)
        else:
            prefix = RepeatedPrefix(cache, mask, repeats)
        return logits.repeat_interleave(repeats, 0), prefix


def _groups(rendered: Sequence[Sequence[int]], num_samples: int, batch_size: int) -> Iterator[_Group]:
    """Prompts of similar length together, at most batch_size rows; a prompt's samples part only above that."""
    order = sorted(range(len(rendered)), key=lambda p: -len(rendered[p]))
    per_group = max(1, batch_size // num_samples)
    for start in range(0, len(order), per_group):
        for first in range(0, num_samples, batch_size):
            yield _Group(order[start : start + per_group], range(first, min(first + batch_size, num_samples)))


def _left_padded(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """ids and mask, (P, width) int64, with the prompts at the right edge."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


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
