"""How an iteration's answers become minibatches and the processes' micro-batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.experience import Minibatch, make_minibatches
from rlhf.ppo.rollout import Rollout
from rlhf.training.config import OptimizerConfig

PROMPTS = 12


def _rollouts(samples: int) -> list[Rollout]:
    """Each prompt of its own length, each answer too."""
    prompts = [(0, *([p + 3] * (1 + p % 5))) for p in range(PROMPTS)]
    return [
        Rollout(prompt, (s + 3,) * (1 + (p + 2 * s) % 7), True, 0.0, 0.0, p + 0.1 * s, False)
        for p, prompt in enumerate(prompts)
        for s in range(samples)
    ]


def _of_every_process(samples: int, minibatch: int, micro: int, processes: int, seed: int = 0) -> list[list[Minibatch]]:
    optimizer = OptimizerConfig(batch_size=minibatch, micro_batch_size=micro)
    config = PPOConfig(batch_size=PROMPTS * samples, samples_per_prompt=samples, optimizer=optimizer)
    found = []
    for process in range(processes):
        accelerator: Any = SimpleNamespace(
            process_index=process, num_processes=processes, device=torch.device("cpu"), is_main_process=process == 0
        )
        found.append(make_minibatches(_rollouts(samples), config, accelerator, pad_id=2, seed=seed))
    return found


def _rows(minibatch: Minibatch) -> list[list[int]]:
    return [batch["rows"].tolist() for batch, share in minibatch.batches if share]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 3, 4, 16])
@pytest.mark.parametrize(("samples", "minibatch"), [(1, 5), (2, 8), (3, 12), (4, 16), (4, 10), (8, 16), (4, 48)])
def test_every_answer_is_in_one_batch_of_its_step_and_none_is_too_large(
    samples: int, minibatch: int, micro: int, processes: int
) -> None:
    everyone = _of_every_process(samples, minibatch, micro, processes)
    assert len({len(minibatches) for minibatches in everyone}) == 1
    seen: list[int] = []
    for step in zip(*everyone, strict=True):
        assert len({len(part.batches) for part in step}) == 1, "every process has as many batches as any other"
        rows = [row for part in step for batch in _rows(part) for row in batch]
        assert len(rows) == step[0].answers <= minibatch
        assert all(len(batch) <= micro for part in step for batch in _rows(part))
        seen += rows
    assert sorted(seen) == list(range(PROMPTS * samples))


@pytest.mark.parametrize(("samples", "micro", "together"), [(4, 4, 4), (4, 16, 4), (8, 4, 4), (4, 2, 2), (2, 8, 2)])
def test_answers_to_a_prompt_are_in_one_batch_which_computes_it_once(samples: int, micro: int, together: int) -> None:
    for minibatches in _of_every_process(samples, 16, micro, processes=2):
        for minibatch in minibatches:
            for batch, share in minibatch.batches:
                rows = batch["rows"].tolist()
                prompts = {row // samples for row in rows}
                assert not share or len(rows) == together * len(prompts)
                answers = [_rollouts(samples)[row] for row in rows]
                of_prompts = sum(len(_rollouts(samples)[prompt * samples].prompt_ids) for prompt in prompts)
                computed = batch["packed"].input_ids.numel()
                assert computed <= of_prompts + sum(len(answer.answer_ids) for answer in answers)


def test_the_prompts_are_shuffled_anew_by_the_seed() -> None:
    orders = [[_rows(m) for m in _of_every_process(4, 16, 4, 1, seed=seed)[0]] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
