"""Rows written side by side: answers take places in the batch, and leave them when they end.

Rows that begin together are a cohort: they share their prompts' cache and have one length. Cohorts meet in the model's
matrix products only, so new rows can take the places of ended ones at any time, and nothing is padded or masked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StopStringCriteria

from rlhf.errors import InputError
from rlhf.models.batching import batch_tokens_on
from rlhf.models.packing import alone_in_last_layer
from rlhf.sampling.decoding.cache import RepeatedPrefix, cache_name, joined, make_cache
from rlhf.sampling.decoding.compiled import CompiledStep, PlacedRows
from rlhf.sampling.decoding.drawing import draw, uniforms
from rlhf.sampling.decoding.shared_prefix import NAME as SHARED
from rlhf.sampling.decoding.shared_prefix import SharedPrefix
from rlhf.sampling.protocol import SamplingParams


class Owner(NamedTuple):
    """Whose answer a row is: the prompt's position in the call, its key for the draws, the sample's number."""

    prompt: int
    key: int
    sample: int


class Written(NamedTuple):
    """An answer, or what there is of it so far; `finished`: its end token or a stop text came."""

    owner: Owner
    token_ids: tuple[int, ...]
    logprob: float
    sampling_logprob: float
    finished: bool


Prefix = SharedPrefix | RepeatedPrefix | PlacedRows


@dataclass
class _Cohort:
    prefix: Prefix
    length: int = 0  # tokens that each of its rows has


class Decoder:
    """At most `places` rows that are being written.

    Args:
        model: in eval mode, within `sharing`.
        places: rows at once.
        params: how tokens are drawn.
        ends: ids that end an answer.
        pad: id to the left of shorter prompts.
        context: longest sequence of the model; an answer is cut there.
        stop: says which rows have just written a stop text; None: there are no stop texts.
        step: decodes in place of the model, at a fixed shape that holds all places and the longest answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        places: int,
        params: SamplingParams,
        ends: Collection[int],
        pad: int,
        context: int,
        stop: StopStringCriteria | None = None,
        step: CompiledStep | None = None,
    ) -> None:
        self.model, self.params, self.pad, self.context = model, params, pad, context
        self.stop, self.step = stop, step
        self.shares = model.config._attn_implementation == SHARED
        self.cache_name = cache_name(model)
        self.ends = torch.tensor(sorted(ends), device=model.device)
        # by place
        self.owners: dict[int, Owner] = {}
        self.tokens = torch.zeros(places, params.max_new_tokens, dtype=torch.long, device=model.device)
        self.draws = torch.zeros(places, params.max_new_tokens, device=model.device)
        self.logprobs = torch.zeros(2, places, device=model.device)
        self.seen: Tensor | None = None  # (places, V) bool, where there is a repetition penalty
        # by row: first cohort's rows, second's …; logits (n, V) are those of the next token
        self.cohorts: list[_Cohort] = []
        self.place, self.start, self.length = torch.zeros(3, 0, dtype=torch.long, device=model.device)
        self.logits = torch.zeros(0, device=model.device)

    def __len__(self) -> int:
        """Rows."""
        return len(self.place)

    @property
    def free(self) -> int:
        """Places that a cohort can take now: where the cache is not shared, it must be alone."""
        return len(self.tokens) - len(self) if self.shares or not len(self) else 0

    def admit(self, prompts: Sequence[list[int]], owners: Sequence[Owner]) -> None:
        """Run P prompts once and begin their P x K answers, owned by owners[p * K + k]: a cohort."""
        device = self.model.device
        repeats = len(owners) // len(prompts)
        place = torch.tensor([i for i in range(len(self.tokens)) if i not in self.owners][: len(owners)], device=device)
        self.owners |= dict(zip(place.tolist(), owners, strict=True))
        self.draws[place] = uniforms(
            self.params.seed, [(owner.key, owner.sample) for owner in owners], self.params.max_new_tokens
        ).to(device)
        self.logprobs[:, place] = 0.0
        logits, prefix = self._prefill(prompts, place.view(-1, repeats))
        if self.params.repetition_penalty != 1:
            if self.seen is None:
                self.seen = torch.zeros(len(self.tokens), logits.shape[-1], dtype=torch.bool, device=device)
            self.seen[place] = False
            for ids, places in zip(prompts, place.view(-1, repeats), strict=True):
                self.seen[places[:, None], torch.tensor(ids, device=device)] = True
        start = torch.tensor([len(ids) for ids in prompts], device=device).repeat_interleave(repeats)
        self.place, self.start = torch.cat([self.place, place]), torch.cat([self.start, start])
        self.length = torch.cat([self.length, torch.zeros_like(place)])
        self.logits = torch.cat([self.logits, logits]) if self.cohorts else logits
        self.cohorts.append(_Cohort(prefix))

    def draw(self) -> list[Written]:
        """Write one token in every row; the rows that end with it leave and are returned."""
        seen = None if self.seen is None else self.seen[self.place]
        drawn = draw(self.logits, self.draws[self.place, self.length], self.params, seen)
        self.tokens[self.place, self.length] = drawn.tokens
        self.logprobs[:, self.place] += torch.stack([drawn.logprobs, drawn.sampling_logprobs])
        if self.seen is not None:
            self.seen[self.place, drawn.tokens] = True
        self.length = self.length + 1
        for cohort in self.cohorts:
            cohort.length += 1
        finished = torch.isin(drawn.tokens, self.ends)
        if self.stop is not None:
            finished |= self.stop(self._newest(self.stop.maximum_token_len), None)
        full = (self.length == self.params.max_new_tokens) | (self.start + self.length == self.context)
        done = (finished | full).nonzero().squeeze(1)
        return self.drop(done, finished[done]) if len(done) else []

    def drop(self, rows: Tensor, finished: Tensor | None = None) -> list[Written]:
        """Take these rows out; what they had written."""
        written = self.written(rows, finished)
        for place in self.place[rows].tolist():
            del self.owners[place]
        gone = torch.zeros(len(self), dtype=torch.bool)
        gone[rows.cpu()] = True
        staying, cohorts = [], []
        for first, cohort in self._starts():
            keep = _fill_holes(gone[first : first + len(cohort.prefix)])
            staying.append(first + keep)
            if not len(keep):
                continue
            if len(keep) < len(cohort.prefix):
                cohort.prefix.select(keep.to(rows.device))
            cohorts.append(cohort)
        self.cohorts = cohorts
        kept = torch.cat(staying).to(rows.device)
        self.place, self.start, self.length = self.place[kept], self.start[kept], self.length[kept]
        return written

    def written(self, rows: Tensor, finished: Tensor | None = None) -> list[Written]:
        """What stands in these rows; InputError where the model's logits for one were not finite."""
        place, lengths = self.place[rows], self.length[rows]
        ended = [False] * len(rows) if finished is None else finished.tolist()
        if not self.logprobs[0, place].isfinite().all():
            raise InputError(
                f"policy: {self.model.config._name_or_path} writes what is no number (NaN in its logits in "
                f"{str(self.model.dtype).removeprefix('torch.')}, from weights that are finite); use bfloat16 or "
                "float32, and the config.json that the weights were saved with"
            )
        columns = (place, self.tokens[place, : int(lengths.max())], lengths, *self.logprobs[:, place])
        return [
            Written(self.owners[place], tuple(ids[:length]), logprob, sampling_logprob, end)
            for place, ids, length, logprob, sampling_logprob, end in zip(
                *(column.tolist() for column in columns), ended, strict=True
            )
        ]

    def rows_at(self, lengths: Collection[int]) -> Tensor:
        """The rows that have as many tokens as one of `lengths`."""
        ranges = [
            torch.arange(first, first + len(cohort.prefix), device=self.model.device)
            for first, cohort in self._starts()
            if cohort.length in lengths
        ]
        return torch.cat(ranges) if ranges else self.place[:0]

    def forward(self) -> None:
        """The logits of every row's next token."""
        newest, positions = self.tokens[self.place, self.length - 1], self.start + self.length - 1
        if self.step is not None:
            self.logits = self.step.logits(newest, self.place, positions)
            return
        prefixes = [cohort.prefix for cohort in self.cohorts]
        first = prefixes[0]
        if isinstance(first, RepeatedPrefix):  # it is the only one
            kept = first.arguments()
        else:
            kept = {"shared_prefixes": prefixes, "use_cache": False}
        self.logits = self.model(
            input_ids=newest[:, None], position_ids=positions[:, None], logits_to_keep=1, **kept
        ).logits[:, -1]
        if isinstance(first, SharedPrefix) and first.own_length != self.cohorts[0].length:
            raise RuntimeError(
                "the model does not pass keyword arguments on to its attention; load it with eager attention"
            )

    def _prefill(self, prompts: Sequence[list[int]], places: Tensor) -> tuple[Tensor, Prefix]:
        """The logits (P x K, V) of the first answer token, and what the rest builds on; places (P, K).

        Where the cache is shared, a forward pass has no more tokens than pay: hundreds of long prompts at once would
        take more memory for what is between the layers than all that is written after them. And its prompts are alike
        in length.
        """
        device = self.model.device
        parts = _alike(prompts, batch_tokens_on(device)) if self.shares else [prompts]
        passes = [self._run(*(tensor.to(device) for tensor in _left_padded(part, self.pad))) for part in parts]
        logits, cache = torch.cat([part for part, _ in passes]), joined([part for _, part in passes])
        mask = _left_padded(prompts, self.pad)[1].to(device)
        repeats = places.shape[1]
        prefix: Prefix
        if self.step is not None:
            self.step.begin(cache, [len(prompt) for prompt in prompts], places)
            prefix = PlacedRows(places.numel())
        elif self.shares:
            prefix = SharedPrefix(cache, mask, repeats)
        else:
            prefix = RepeatedPrefix(cache, self.cache_name, mask, repeats)
        return logits.repeat_interleave(repeats, 0), prefix

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, DynamicCache]:
        """The logits (p, V) after left-padded prompts, and their cache."""
        cache = make_cache(self.model.config)
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        with alone_in_last_layer(self.model.base_model, last) if self.shares else nullcontext():
            logits: Tensor = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=True,
                logits_to_keep=1,
                **{self.cache_name: cache},
            ).logits[:, -1]
        return logits, cache

    def _newest(self, count: int) -> Tensor:
        """The last `count` tokens of every row, (n, count); before an answer's first an id beyond any vocabulary."""
        columns = self.length[:, None] + torch.arange(-count, 0, device=self.length.device)
        return self.tokens[self.place[:, None], columns.clamp(min=0)].masked_fill(columns < 0, 1 << 40)

    def _starts(self) -> list[tuple[int, _Cohort]]:
        """Every cohort with the number of its first row."""
        sizes = [len(cohort.prefix) for cohort in self.cohorts]
        return list(zip(accumulate(sizes, initial=0), self.cohorts, strict=False))


def _alike(prompts: Sequence[list[int]], tokens: int) -> list[list[list[int]]]:
    """Prompts in their order, longest first, parted so that a part has at most `tokens` with its padding, which is a
    quarter at most."""
    parts: list[list[list[int]]] = []
    for prompt in prompts:
        longest = len(parts[-1][0]) if parts else 0
        if not parts or 4 * len(prompt) < 3 * longest or (len(parts[-1]) + 1) * longest > tokens:
            parts.append([])
        parts[-1].append(prompt)
    return parts


def _left_padded(prompts: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
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
