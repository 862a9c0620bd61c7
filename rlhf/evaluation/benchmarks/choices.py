"""The choices of a question, scored behind the context that they share, which is computed once.

The harness scores every choice of more than one token with its whole context, and has the vocabulary's logits at each
token of it. Of ARC, whose choices stand behind 25 examples, that is about four fifths of the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from rlhf.errors import InputError
from rlhf.models.batching import pad_rows
from rlhf.models.packing import alone_in_last_layer, enable_packing, pack_rows
from rlhf.objectives.policy import token_logprobs
from rlhf.stage.progress import progress_bar
from rlhf.terminal import note

Request = tuple[Any, list[int], list[int]]
"""What was asked, as text; the ids of the context; the ids of the choice."""


def harness_model(model: Any, tokenizer: Any, rows: int) -> HFLM:
    """The harness's view of a causal LM on its device: the same scores up to rounding.

    A model that cannot take packed rows (`enable_packing`) is scored as the harness does it.

    Args:
        rows: choices that are scored at once.
    """
    kind = _SharedContexts if enable_packing(_without_wrapper(model)) else HFLM
    return kind(pretrained=model, tokenizer=tokenizer, batch_size=rows)


def _without_wrapper(model: Any) -> Any:
    """The causal LM itself, its adapter's layers in it."""
    return getattr(model, "get_base_model", lambda: model)()


class _SharedContexts(HFLM):  # type: ignore[misc]
    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-probability of the choice, whether greedy decoding would have written it) of each request.

        Raises:
            InputError: a choice has no tokens, or more than the model takes.
        """
        most = self.max_length
        for text, _, choice in requests:
            if not 0 < len(choice) <= most:
                raise InputError(
                    f"tasks: the choice {text[1]!r:.60} is {len(choice)} tokens; this model takes 1 to {most}"
                )
        cut = sum(len(context) + len(choice) > most + 1 for _, context, choice in requests)
        if cut:
            note(
                f"{cut} of {len(requests)} choices do not fit behind their context in the model's {most} tokens: the "
                "context's first ones are left out"
            )
        found: dict[int, tuple[float, bool]] = {}
        progress = progress_bar(len(requests), "choices", "choice")
        for batch in _batches(requests, override_bs or int(self.batch_size)):
            scored = self._scored([requests[number] for number in batch])
            found |= dict(zip(batch, scored, strict=True))
            progress.update(len(batch))
        progress.close()
        return [found[number] for number in range(len(requests))]

    def _scored(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        # as the harness: too long a context loses its first tokens; the last token predicts none
        rows = [(context + choice)[-(self.max_length + 1) :] for _, context, choice in requests]
        ids, mask = pad_rows([row[:-1] for row in rows], 0)
        sizes = [len(choice) for _, _, choice in requests]
        ends = torch.tensor([len(row) - 1 for row in rows])[:, None]
        columns = torch.arange(ids.shape[1])
        read = (columns < ends) & (columns >= ends - torch.tensor(sizes)[:, None])
        numbers = {context: number for number, context in enumerate(dict.fromkeys(tuple(r[1]) for r in requests))}
        groups = torch.tensor([numbers[tuple(context)] for _, context, _ in requests])
        packed = pack_rows(ids, mask, groups, read).to(self.device)
        with alone_in_last_layer(_without_wrapper(self.model).base_model, packed.alone):
            logits = self.model(**packed.inputs(), logits_to_keep=packed.read).logits[0]
        asked = torch.tensor([token for _, _, choice in requests for token in choice], device=logits.device)
        logprobs = token_logprobs(logits, asked).split(sizes)
        greedy = (logits.argmax(-1) == asked).split(sizes)
        return [(float(one.sum()), bool(hits.all())) for one, hits in zip(logprobs, greedy, strict=True)]


def _batches(requests: Sequence[Request], rows: int) -> Iterator[list[int]]:
    """Numbers of the requests, longest context first, those of one context together; whole contexts where they fit."""
    order = sorted(range(len(requests)), key=lambda number: (-len(requests[number][1]), requests[number][1]))
    of_contexts: dict[tuple[int, ...], list[int]] = {}
    for number in order:
        of_contexts.setdefault(tuple(requests[number][1]), []).append(number)
    batch: list[int] = []
    for numbers in of_contexts.values():
        if batch and len(batch) + len(numbers) > rows:
            yield batch
            batch = []
        for start in range(0, len(numbers), rows):
            batch += numbers[start : start + rows]
            if len(batch) >= rows:
                yield batch
                batch = []
    if batch:
        yield batch
