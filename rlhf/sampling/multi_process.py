"""Sampling dealt out over the processes of an accelerate launch; every process gets the whole result."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.conversation import Conversation
from rlhf.sampling.protocol import Sample, Sampler, SamplingParams


def sample_distributed(
    sampler: Sampler,
    prompts: Sequence[Conversation],
    n: int,
    params: SamplingParams,
    accelerator: Accelerator,
    keys: Sequence[int] | None = None,
) -> list[list[Sample]]:
    """`n` answers for each prompt, the same on every process and for any number of processes.

    Called by all processes with the same prompts. Process r samples prompts r, r + world, ...; a prompt's key is its
    position in the whole list unless `keys` says otherwise.
    """
    keys = range(len(prompts)) if keys is None else keys
    mine = range(accelerator.process_index, len(prompts), accelerator.num_processes)
    drawn = sampler.sample([prompts[i] for i in mine], n, params, keys=[keys[i] for i in mine])
    gathered = dict(gather_object(list(zip(mine, drawn, strict=True))))
    return [gathered[i] for i in range(len(prompts))]
