"""One answer to each prompt, dealt out over the processes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.conversation import Conversation
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import Sample, Sampler, SamplingParams
from rlhf.synthesis.ghost_attention import Ask

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_ask(sampler: Sampler, params: SamplingParams, accelerator: Accelerator, shards: Path | None = None) -> Ask:
    """A function that all processes call with the same prompts and that gives all of them all answers.

    Args:
        shards: folder in which the answers outlive a kill, a folder a call; they hold where the calls come again as
            they came before. None: nothing is written.
    """
    calls = itertools.count()

    def ask(prompts: Sequence[Conversation], keys: Sequence[int]) -> list[Sample]:
        own = None if shards is None else shards / f"{next(calls):04d}"
        return [samples[0] for samples in sample_distributed(sampler, prompts, 1, params, accelerator, keys, own)]

    return ask
