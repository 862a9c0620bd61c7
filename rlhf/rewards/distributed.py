"""Scoring dealt out over the processes of an accelerate launch; every process gets all scores. Light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.rewards.gate import GatedReward, GatedRewards

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")
Result = TypeVar("Result")


def score_answers(
    prompts: Sequence[Prompt], answers: Sequence[str], reward: GatedReward, accelerator: Accelerator
) -> GatedRewards:
    """Gated rewards of answers[i] to prompts[i], the same on every process and for any number of processes.

    An answer without text is no conversation that a reward model could score: it gets the lowest scores of the others
    (decision 32).

    Raises:
        InputError: on every process, where a reward function fails on one; or no answer has text.
    """
    import torch
    from accelerate.utils import gather_object

    spoken = [i for i, answer in enumerate(answers) if answer.strip()]
    if not spoken:
        raise InputError("policy: all of its answers are empty; name a policy that answers")
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = spoken[len(spoken) * rank // world : len(spoken) * (rank + 1) // world]  # a prompt's answers stay together
    found: list[tuple[int, tuple[float, ...], tuple[bool, bool]]] = []
    failures: list[str] = []
    scored = mine or spoken[:1]  # every process calls the reward functions: their weights may have to be gathered
    try:
        gated = reward([prompts[i].answered(answers[i]) for i in scored], [prompts[i].domain for i in scored])
        if mine:
            scores = (
                (gated.helpfulness, gated.reward)
                if gated.safety is None
                else (gated.helpfulness, gated.reward, gated.safety)
            )
            columns = zip(*(score.tolist() for score in scores), strict=True)
            flags = zip(gated.used_safety.tolist(), gated.too_long.tolist(), strict=True)
            found = list(zip(mine, columns, flags, strict=True))
    except InputError as error:
        failures = [str(error)]
    failures = gather_object(failures)  # one process's failure ends all: none is left waiting
    if failures:
        raise InputError(failures[0])
    found = gather_object(found)
    index = torch.tensor([number for number, _, _ in found])
    known = torch.tensor([scores for _, scores, _ in found], dtype=torch.float32)
    table = known.amin(0).repeat(len(answers), 1)
    table[index] = known
    marks = torch.zeros(len(answers), 2, dtype=torch.bool)
    marks[index] = torch.tensor([flags for _, _, flags in found])
    safety = None if reward.safety is None else table[:, 2]
    return GatedRewards(table[:, 0], safety, table[:, 1], marks[:, 0], marks[:, 1])


def deal_out(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], accelerator: Accelerator
) -> list[Result]:
    """`work` on every item, each process doing its part; all results, in the items' order, on every process.

    Raises:
        InputError: on every process, where `work` raised it on one.
    """
    from accelerate.utils import gather_object

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
