"""One answer to each prompt, dealt out over the processes."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from rlhf.conversation import Conversation
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import Sample, Sampler, SamplingParams
from rlhf.synthesis.ghost_attention import Ask


def make_ask(sampler: Sampler, params: SamplingParams, accelerator: Accelerator) -> Ask:
    """A function that all processes call with the same prompts and that gives all of them all answers."""

    def ask(prompts: Sequence[Conversation], keys: Sequence[int]) -> list[Sample]:
        return [samples[0] for samples in sample_distributed(sampler, prompts, 1, params, accelerator, keys)]

    return ask
