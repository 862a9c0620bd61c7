"""Sampling dealt out over the processes of an accelerate launch; every process gets the whole result. Light."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlhf.conversation import Conversation
from rlhf.errors import InputError, notice
from rlhf.sampling.protocol import Sample, Sampler, SamplerGone, SamplingParams, StreamingSampler
from rlhf.sampling.shards import ShardWriter, read_shards
from rlhf.stage.progress import shared_work

if TYPE_CHECKING:
    from accelerate import Accelerator


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
    position in the whole list unless `keys` says otherwise. What a process leaves whose sampler is gone, the others
    draw. Of each `sampler.shared_by` processes, where a sampler says so, the first alone draws.

    Args:
        shards: folder in which each prompt's answers are kept once they are all there; prompts whose answers are there
            already, from an earlier call with the same arguments, are not asked again. None: nothing is written.

    Raises:
        InputError: on every process, where the sampler of any of them raises it, or those of all are gone; what was
            drawn is in the shards.
    """
    from accelerate.utils import gather_object

    keys = range(len(prompts)) if keys is None else keys
    answers = {} if shards is None else read_shards(shards)
    if answers and accelerator.is_main_process:
        print(f"sampling: goes on, {len(answers)} of {len(prompts)} prompts are answered", file=sys.stderr)
    writer = None
    if shards is not None:
        accelerator.wait_for_everyone()  # nobody writes before all have read
        writer = ShardWriter(shards, accelerator.process_index)
    drawing = list(range(0, accelerator.num_processes, getattr(sampler, "shared_by", 1)))
    while left := [i for i in range(len(prompts)) if i not in answers]:
        own = accelerator.process_index
        mine = left[drawing.index(own) :: len(drawing)] if own in drawing else []
        drawn: dict[int, list[Sample]] = {}
        failure: tuple[str, bool] | None = None
        try:
            with shared_work(len(mine), len(left)):
                for i, some in _as_they_come(sampler, mine, prompts, n, params, keys):
                    if writer is not None:
                        writer.write(i, some)
                    drawn[i] = some
        except InputError as error:
            failure = str(error), isinstance(error, SamplerGone)
        parts = gather_object([(drawn, failure)])
        answers |= {i: some for part, _ in parts for i, some in part.items()}
        failures = {process: failure for process, (_, failure) in enumerate(parts) if failure is not None}
        if not failures:
            break
        drawing = [process for process in drawing if process not in failures]
        for sentence, gone in failures.values():
            if not gone or not drawing:
                raise InputError(sentence)
            notice(f"{sentence}; the other processes draw what it has left")
    return [answers[i] for i in range(len(prompts))]


def _as_they_come(
    sampler: Sampler,
    positions: Sequence[int],
    prompts: Sequence[Conversation],
    n: int,
    params: SamplingParams,
    keys: Sequence[int],
) -> Iterator[tuple[int, list[Sample]]]:
    """(position, its answers) of all positions: all at the end, where the sampler does not stream."""
    if not positions:
        return
    asked = _chosen(positions, prompts, n, params, keys)
    numbered = sampler.stream(*asked) if isinstance(sampler, StreamingSampler) else enumerate(sampler.sample(*asked))
    for i, answers in numbered:
        yield positions[i], answers


def _chosen(
    positions: Sequence[int],
    prompts: Sequence[Conversation],
    n: int,
    params: SamplingParams,
    keys: Sequence[int],
) -> tuple[list[Conversation], int, SamplingParams, list[int]]:
    """Arguments of a sampler's methods."""
    return [prompts[i] for i in positions], n, params, [keys[i] for i in positions]
