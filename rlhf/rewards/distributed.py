"""Scoring dealt out over the processes of an accelerate launch; every process gets all scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.rewards.gate import GatedRewards, gated_rewards
from rlhf.rewards.protocol import RewardFunction

Item = TypeVar("Item")
Result = TypeVar("Result")


def score_answers(
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    helpfulness: RewardFunction,
    safety: RewardFunction,
    accelerator: Accelerator,
) -> GatedRewards:
    """Gated rewards of answers[i] to prompts[i], the same on every process and for any number of processes.

    An answer without text is no conversation that a reward model could score: it gets the lowest scores of the others.

    Raises:
        InputError: on every process, where a reward function fails on one; or no answer has text.
    """
    spoken = [i for i, answer in enumerate(answers) if answer.strip()]
    if not spoken:
        raise InputError("policy: all of its answers are empty; name a policy that answers")
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = spoken[len(spoken) * rank // world : len(spoken) * (rank + 1) // world]  # a prompt's answers stay together
    found: list[tuple[int, float, float, float, bool]] = []
    failures: list[str] = []
    scored = mine or spoken[:1]  # every process calls the reward functions: their weights may have to be gathered
    try:
        gated = gated_rewards(
            [[*prompts[i].messages, {"role": "assistant", "content": answers[i]}] for i in scored],
            [prompts[i].domain for i in scored],
            helpfulness,
            safety,
        )
        if mine:
            columns = (gated.helpfulness, gated.safety, gated.reward, gated.used_safety)
            found = list(zip(mine, *(column.tolist() for column in columns), strict=True))
    except InputError as error:
        failures = [str(error)]
    failures = gather_object(failures)  # one process's failure ends all: none is left waiting
    if failures:
        raise InputError(failures[0])
    found = gather_object(found)
    lowest = [min(row[column] for row in found) for column in (1, 2, 3)]
    scores = [torch.full((len(answers),), low, dtype=torch.float32) for low in lowest]
    used_safety = torch.zeros(len(answers), dtype=torch.bool)
    index = torch.tensor([row[0] for row in found])
    for column, score in enumerate(scores, start=1):
        score[index] = torch.tensor([row[column] for row in found], dtype=torch.float32)
    used_safety[index] = torch.tensor([row[4] for row in found])
    return GatedRewards(*scores, used_safety)


def deal_out(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], accelerator: Accelerator
) -> list[Result]:
    """`work` on every item, each process doing its part; all results, in the items' order, on every process.

    Raises:
        InputError: on every process, where `work` raised it on one.
    """
    mine = range(accelerator.process_index, len(items), accelerator.num_processes)
    results: Sequence[Result] = []
    failures: list[str] = []
    try:
        results = work([items[i] for i in mine]) if mine else []
    except InputError as error:
        failures = [str(error)]
    failures = gather_object(failures)  # one that fails alone would leave the others waiting
    if failures:
        raise InputError(failures[0])
    gathered = dict(gather_object(list(zip(mine, results, strict=True))))
    return [gathered[i] for i in range(len(items))]
