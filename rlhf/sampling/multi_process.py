"""Sampling dealt out over the processes of an accelerate launch; every process gets the whole result."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.sampling.protocol import Sample, Sampler, SamplingParams, StreamingSampler
from rlhf.sampling.shards import ShardWriter, read_shards

BLOCK = 2048  # answers between two writes, where the sampler does not stream


def sample_distributed(
    sampler: Sampler,
    prompts: Sequence[Conversation],
    n: int,
    params: SamplingParams,
    accelerator: Accelerator,
    keys: Sequence[int] | None = None,
    shards: str | os.PathLike[str] | None = None,
) -> list[list[Sample]]:
    """`n` answers for each prompt, the same on every process and for any number of processes.

    Called by all processes with the same prompts. Process r samples prompts r, r + world, ...; a prompt's key is its
    position in the whole list unless `keys` says otherwise.

    Args:
        shards: folder in which the answers are kept as they come; prompts whose answers are there already, from an
            earlier call with the same arguments, are not asked again. None: nothing is written.

    Raises:
        InputError: on every process, where the sampler of any of them raises it; what the others drew is in the shards.
    """
    keys = range(len(prompts)) if keys is None else keys
    answers = {} if shards is None else read_shards(shards)
    if answers and accelerator.is_main_process:
        print(f"sampling: goes on, {len(answers)} of {len(prompts)} prompts are answered", file=sys.stderr)
    mine = [i for i in range(accelerator.process_index, len(prompts), accelerator.num_processes) if i not in answers]
    drawn: dict[int, list[Sample]] = {}
    failure = None
    try:
        if shards is None:
            drawn.update(zip(mine, sampler.sample(*_chosen(mine, prompts, n, params, keys)), strict=True))
        else:
            accelerator.wait_for_everyone()  # nobody writes before all have read
            writer = ShardWriter(shards, accelerator.process_index)
            for block in _blocks(sampler, mine, prompts, n, params, keys):
                writer.write(block)
                drawn.update(block)
    except InputError as error:
        failure = str(error)
    for part, problem in gather_object([(drawn, failure)]):
        if problem is not None:
            raise InputError(problem)
        answers |= part
    return [answers[i] for i in range(len(prompts))]


def _blocks(
    sampler: Sampler,
    positions: Sequence[int],
    prompts: Sequence[Conversation],
    n: int,
    params: SamplingParams,
    keys: Sequence[int],
) -> Iterator[list[tuple[int, list[Sample]]]]:
    """(position, its answers) of all positions, in parts to be written at once.

    A sampler that does not stream gets prompts of similar length together, the longest first, in blocks that a run
    which goes on finds again: its batches are the same, and so is their rounding.
    """
    if not positions:
        return
    if isinstance(sampler, StreamingSampler):
        for i, answers in sampler.stream(*_chosen(positions, prompts, n, params, keys)):
            yield [(positions[i], answers)]
        return
    ordered = sorted(positions, key=lambda i: -sum(len(message["content"]) for message in prompts[i]))
    size = max(1, BLOCK // n)
    for start in range(0, len(ordered), size):
        block = ordered[start : start + size]
        yield list(zip(block, sampler.sample(*_chosen(block, prompts, n, params, keys)), strict=True))


def _chosen(
    positions: Sequence[int],
    prompts: Sequence[Conversation],
    n: int,
    params: SamplingParams,
    keys: Sequence[int],
) -> tuple[list[Conversation], int, SamplingParams, list[int]]:
    """Arguments of a sampler's methods."""
    return [prompts[i] for i in positions], n, params, [keys[i] for i in positions]
