"""K answers per prompt from a model in this process.

Where it departs from `generate(num_return_sequences=K)`: a prompt is run once and its cache shared by its K answers;
rows that end leave the batch, and other prompts' rows take their places; the cache is written in place; and a sample's
draws depend on (seed, key, index) alone: batch size, the order of the prompts and the number of processes change no
sample. (The model's own arithmetic may round differently in another batch: a draw within that rounding of a token's
edge, about one in a million, can still move.)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, StopStringCriteria

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.models.checkpoint.context import Context, TooLong
from rlhf.models.ending import own_end_tokens
from rlhf.sampling.decoding.cache import is_recurrent
from rlhf.sampling.decoding.compiled import CompiledStep, step_shape
from rlhf.sampling.decoding.decoder import Decoder, Owner, Written
from rlhf.sampling.decoding.packed_weights import packed_weights
from rlhf.sampling.decoding.shared_prefix import sharing
from rlhf.sampling.early_rejection import EarlyRejection
from rlhf.sampling.memory import rows_at_once
from rlhf.sampling.opening import Opening, load_weights, renderer_of
from rlhf.sampling.protocol import Sample, SamplingParams, StreamingSampler, before_stop
from rlhf.sampling.room import prompts_within
from rlhf.stage.progress import progress_bar

if TYPE_CHECKING:
    from rlhf.conversation import Renderer
    from rlhf.sampling.source import PolicySource

REFILL = 0.5  # share of the places that must be free before new rows take them: every cohort has its price
PADDING = 2048  # tokens that shorter prompts are padded with before another cohort costs less


class InProcessSampler(StreamingSampler):
    """Draws from a causal LM in this process.

    Args:
        model: the bare model (not wrapped by DDP or DeepSpeed), on its device. In eval mode until the last answer is
            given out.
        renderer: turns conversations into ids and knows the ids that end an answer.
        rows: answers written at once; None: as many as memory holds, and no more than pay.
        early_rejection: drops a prompt's unpromising rows while they are written; such a sample is not finished.
        compile: decode with `CompiledStep`.
        too_long: as for `rlhf.sampling.room.prompts_within`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        rows: int | None = None,
        early_rejection: EarlyRejection | None = None,
        compile: bool = False,
        too_long: TooLong | None = None,
    ) -> None:
        self.model = model
        self.too_long = too_long
        self.renderer = renderer
        self.rows = rows
        self.early_rejection = early_rejection
        self.compile = compile
        self._step: CompiledStep | None = None  # for the next call of its shape

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """The same prompt by prompt, each when its last answer ends; see `StreamingSampler`.

        An answer ends where the model's context does.

        Raises:
            InputError: a prompt leaves too little room in the model's context and `too_long` refuses that, or early
                rejection does not have a prompt's answers side by side; nothing was sampled then. Or: its reward
                function failed.
        """
        keys = range(len(prompts)) if keys is None else keys
        if len(keys) != len(prompts):
            raise ValueError(f"keys: {len(keys)} for {len(prompts)} prompts")
        context = Context.of(self.model.config)
        rendered = prompts_within(context, self.renderer, prompts, params.max_new_tokens, self.too_long)
        if not prompts:
            return
        total, longest = len(prompts) * num_samples, max(map(len, rendered))
        places = min(total, self.rows or self._rows_at_once(longest, num_samples, params))
        if self.early_rejection is not None and places < num_samples:
            raise InputError(
                f"early_rejection: compares a prompt's {num_samples} answers while they are written, but only {places} "
                "are written at once; raise policy.rows to num_samples, or lower num_samples"
            )
        ended: dict[int, dict[int, Sample]] = defaultdict(dict)
        with (
            _eval_mode(self.model),
            sharing(self.model) as shared,
            nullcontext() if self.compile else packed_weights(self.model, places),
            progress_bar(total, "sampling", "answer") as progress,
        ):
            if self.compile and not shared:
                raise InputError("compile: works where all of a model's layers are plain full attention; leave it out")
            decoder = Decoder(
                self.model,
                places,
                params,
                self.renderer.end_token_ids | own_end_tokens(self.model),
                self.renderer.pad_token_id,
                context.length or 1 << 30,
                StopStringCriteria(self.renderer.tokenizer, list(params.stop)) if params.stop else None,
                self._compiled(places, longest + params.max_new_tokens) if self.compile else None,
            )
            waiting = deque(_longest_first(rendered, keys, num_samples, places))
            while waiting or len(decoder):
                if decoder.free >= REFILL * places:
                    while waiting and decoder.free >= len(waiting[0]):
                        decoder.admit(*self._cohort(waiting, rendered, decoder.free, PADDING if shared else 0))
                left = decoder.draw()
                if self.early_rejection is not None:
                    left += self._reject(decoder, self.early_rejection)
                progress.update(len(left))
                for written in left:
                    p, index = written.owner.prompt, written.owner.sample
                    ended[p][index] = self._sample(written, params.stop)
                    if len(ended[p]) == num_samples:
                        answers = ended.pop(p)
                        yield p, [answers[i] for i in range(num_samples)]
                if len(decoder):
                    decoder.forward()

    def _rows_at_once(self, longest: int, num_samples: int, params: SamplingParams) -> int:
        """As many as memory holds: a compiled step's rows do not share their prompt, and are as long as the longest."""
        if self.compile:
            _, length = step_shape(1, longest + params.max_new_tokens)
            longest, num_samples = length - params.max_new_tokens, 1
        return rows_at_once(self.model, longest, num_samples, params)

    def _compiled(self, places: int, longest: int) -> CompiledStep:
        shape = step_shape(places, longest)
        if self._step is None or self._step.shape != shape:
            self._step = None  # its memory first
            self._step = CompiledStep(self.model, shape)
        return self._step

    def _cohort(
        self, waiting: deque[list[Owner]], rendered: Sequence[list[int]], free: int, padding: int
    ) -> tuple[list[list[int]], list[Owner]]:
        """The next prompts whose rows find a place: as many rows each, and so alike in length that at most half of any
        is padding, or no more than `padding` tokens in all; of one length where padding would show."""
        prompts: list[list[int]] = []
        owners: list[Owner] = []
        rows, unpadded = len(waiting[0]), is_recurrent(self.model.config)
        while waiting and len(waiting[0]) == rows <= free - len(owners):
            prompt = rendered[waiting[0][0].prompt]
            if prompts and unpadded and len(prompt) != len(prompts[0]):
                break
            padding -= len(prompts[0]) - len(prompt) if prompts else 0
            if prompts and padding < 0 and 2 * len(prompt) < len(prompts[0]):
                break
            prompts.append(prompt)
            owners += waiting.popleft()
        return prompts, owners

    def _reject(self, decoder: Decoder, rejection: EarlyRejection) -> list[Written]:
        """Drop the rows that early rejection gives up now."""
        rows = decoder.rows_at(rejection.config.at)
        if not len(rows):
            return []
        parts = decoder.written(rows)
        order = sorted(range(len(parts)), key=lambda row: parts[row].owner)  # rows move when others leave
        rows, parts = rows[order], [parts[row] for row in order]
        texts = [self.renderer.answer_text(part.token_ids) for part in parts]
        rejected = rejection.choose([part.owner.key for part in parts], texts)
        return decoder.drop(rows[rejected]) if rejected else []

    def _sample(self, written: Written, stop: Sequence[str]) -> Sample:
        text, thoughts = self.renderer.answer(written.token_ids)
        return Sample(
            before_stop(text, stop),
            written.token_ids,
            written.logprob,
            written.finished,
            written.sampling_logprob,
            thoughts,
        )


def _longest_first(
    rendered: Sequence[list[int]], keys: Sequence[int], num_samples: int, places: int
) -> Iterator[list[Owner]]:
    """Rows that go together: a prompt's samples, parted where they are more than the places."""
    for p in sorted(range(len(rendered)), key=lambda p: -len(rendered[p])):
        for first in range(0, num_samples, places):
            yield [Owner(p, keys[p], i) for i in range(first, min(first + places, num_samples))]


@contextmanager
def _eval_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def open_in_process(source: PolicySource, opening: Opening) -> InProcessSampler:
    """The backend in_process of `rlhf.sampling.source`."""
    model = load_weights(source, opening.device) if opening.model is None else opening.model
    renderer = renderer_of(source) if opening.renderer is None else opening.renderer
    return InProcessSampler(model, renderer, source.rows, opening.early_rejection, source.compile, opening.too_long)
