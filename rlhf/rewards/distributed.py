"""Scoring dealt out over the processes of an accelerate launch; every process gets all scores. Light."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rlhf.conversation import Conversation, says_nothing
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.jsonl import read_json
from rlhf.models.checkpoint.context import TooLong
from rlhf.rewards.gate import GatedReward, GatedRewards
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.suspicion import count_again, counts_of
from rlhf.stage.kept import write_whole
from rlhf.stage.progress import shared_work

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")
_Row = tuple[tuple[float, ...], tuple[bool, ...]]
"""Scores and flags of one answer."""


class AnswerScores(NamedTuple):
    """Of one reward function: (n,) float32 raw scores, and which answers count as not finished, as it saw them cut
    (`too_long` is "unfinished")."""

    scores: Tensor
    unfinished: list[bool]


def score_answers(
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    reward: GatedReward,
    accelerator: Accelerator,
    kept: Path | None = None,
) -> GatedRewards:
    """Gated rewards of answers[i] to prompts[i], the same on every process and for any number of processes.

    `kept` is a file in which they outlive a kill, in a folder that an attempt with other rewards would not take over.

    An answer without text is no conversation that a reward model could score: it gets the lowest scores of the others
    (decision 32), and its flags are off.

    Raises:
        InputError: on every process, where a reward function fails on one; or no answer has text.
    """
    import torch

    def score(numbers: Sequence[int]) -> list[_Row]:
        asked = [prompts[i] for i in numbers]
        dialogues = [prompt.answered(answers[i]) for i, prompt in zip(numbers, asked, strict=True)]
        gated = reward(dialogues, [prompt.domain for prompt in asked])
        scores = [gated.helpfulness, gated.reward, *([] if gated.safety is None else [gated.safety])]
        columns = zip(*(column.tolist() for column in scores), strict=True)
        flags = zip(gated.used_safety.tolist(), gated.too_long.tolist(), strict=True)
        return list(zip(columns, flags, strict=True))

    functions = [reward.helpfulness, *([] if reward.safety is None else [reward.safety])]
    rows = _of_all(answers, score, functions, accelerator, kept)
    table = torch.tensor([scores for scores, _ in rows], dtype=torch.float32)
    marks = torch.tensor([flags for _, flags in rows])
    safety = None if reward.safety is None else table[:, 2]
    return GatedRewards(table[:, 0], safety, table[:, 1], marks[:, 0], marks[:, 1])


def answer_scores(
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    reward: RewardFunction,
    name: str,
    accelerator: Accelerator,
    too_long: TooLong = "cut",
    kept: Path | None = None,
) -> AnswerScores:
    """The same of one reward function without a gate.

    Args:
        name: the function's, for messages.
        too_long: what becomes of an answer that its context does not hold.
        kept: as of `score_answers`.
    """
    import torch

    from rlhf.rewards.scoring import check_scores, refuse_cut, were_too_long

    def score(numbers: Sequence[int]) -> list[_Row]:
        scores = check_scores(reward([prompts[i].answered(answers[i]) for i in numbers]), len(numbers), name)
        cut = were_too_long(reward, len(numbers))
        if too_long == "refuse":
            refuse_cut(name, cut)
        return [((value,), (flag,)) for value, flag in zip(scores.tolist(), cut.tolist(), strict=True)]

    rows = _of_all(answers, score, [reward], accelerator, kept)
    unfinished = [too_long == "unfinished" and flag for _, (flag,) in rows]
    return AnswerScores(torch.tensor([scores[0] for scores, _ in rows], dtype=torch.float32), unfinished)


def _of_all(
    answers: Sequence[str],
    score: Callable[[Sequence[int]], list[_Row]],
    functions: Sequence[RewardFunction],
    accelerator: Accelerator,
    kept: Path | None = None,
) -> list[_Row]:
    """Scores and flags of every answer from those of the spoken ones, which `score` gives by their numbers; of the same
    answers they are read from `kept`, where an attempt that was broken off has left them. So is how many of its
    dialogues each of the functions, which `score` asks, had to cut: what is said of that is said again."""
    from accelerate.utils import broadcast_object_list, gather_object

    digest = hashlib.sha256(json.dumps(list(answers)).encode()).hexdigest()
    if kept is not None:
        left = [_left_in(kept, digest) if accelerator.is_main_process else None]
        broadcast_object_list(left)
        if left[0] is not None:
            rows, counts = left[0]
            count_again(functions, counts)
            return rows

    spoken = [i for i, answer in enumerate(answers) if not says_nothing(answer)]
    if not spoken:
        raise InputError("policy: all of its answers are empty; name a policy that answers")
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = spoken[len(spoken) * rank // world : len(spoken) * (rank + 1) // world]  # a prompt's answers stay together
    before = counts_of(functions)
    found: list[tuple[int, _Row]] = []
    failures: list[str] = []
    try:
        if called_with := _called_with(mine, spoken, accelerator):
            with shared_work(len(called_with), len(spoken)):
                found = list(zip(mine, score(called_with)[: len(mine)], strict=True))
    except InputError as error:
        failures = [str(error)]
    failures = gather_object(failures)  # one process's failure ends all: none is left waiting
    if failures:
        raise InputError(failures[0])
    known = dict(gather_object(found))
    lowest = tuple(min(column) for column in zip(*(scores for scores, _ in known.values()), strict=True))
    off = tuple(False for _ in known[spoken[0]][1])
    rows = [known.get(i, (lowest, off)) for i in range(len(answers))]
    if kept is not None and accelerator.is_main_process:
        counts = [(n - m, k - j) for (n, k), (m, j) in zip(counts_of(functions), before, strict=True)]
        write_whole(kept, {"answers": digest, "rows": rows, "counts": counts})
    return rows


def _left_in(file: Path, digest: str) -> tuple[list[_Row], list[tuple[int, int]]] | None:
    """The rows that the file has of answers with this digest, and what each function counted with them; None where it
    has none, or is not there."""
    content = read_json(file) if file.exists() else {}
    if content.get("answers") != digest:
        return None
    rows = [(tuple(scores), tuple(flags)) for scores, flags in content["rows"]]
    return rows, [(scored, cut) for scored, cut in content["counts"]]


def dealt_out(reward: RewardFunction, accelerator: Accelerator) -> RewardFunction:
    """The same reward function, each process scoring its part: every process calls it, and gets all scores.

    Conversations with the same prompt stay together, whose computation a reward model shares.
    """

    def score(conversations: Sequence[Conversation]) -> Tensor:
        import torch

        from rlhf.rewards.scoring import check_scores, name_of

        by_prompt: dict[str, list[int]] = {}
        for number, conversation in enumerate(conversations):
            by_prompt.setdefault(repr(conversation[:-1]), []).append(number)

        def of_prompts(prompts: Sequence[list[int]]) -> list[list[float]]:
            numbers = [number for prompt in prompts for number in prompt]
            found = check_scores(reward([conversations[n] for n in numbers]), len(numbers), name_of(reward)).tolist()
            return [[found.pop(0) for _ in prompt] for prompt in prompts]

        prompts = list(by_prompt.values())
        scores = torch.zeros(len(conversations))
        for numbers, found in zip(prompts, deal_out(prompts, of_prompts, accelerator), strict=True):
            scores[numbers] = torch.tensor(found)
        return scores

    return score


def deal_out(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], accelerator: Accelerator
) -> list[Result]:
    """`work` on every item, each process doing its part; all results, in the items' order, on every process.

    Under ZeRO-3, where all processes gather weights together, one without a part calls it with the first item.

    Raises:
        InputError: on every process, where `work` raised it on one.
    """
    from accelerate.utils import gather_object

    if not items:
        return []
    mine = range(accelerator.process_index, len(items), accelerator.num_processes)
    results: Sequence[Result] = []
    failures: list[str] = []
    try:
        if called_with := _called_with(mine, range(len(items)), accelerator):
            with shared_work(len(mine), len(items)):
                results = work([items[i] for i in called_with])[: len(mine)]
    except InputError as error:
        failures = [str(error)]
    failures = gather_object(failures)  # one that fails alone would leave the others waiting
    if failures:
        raise InputError(failures[0])
    gathered = dict(gather_object(list(zip(mine, results, strict=True))))
    return [gathered[i] for i in range(len(items))]


def _called_with(mine: Sequence[int], of_all: Sequence[int], accelerator: Accelerator) -> Sequence[int]:
    """What a process has scored: its part; without one the first of all where it gathers weights, else nothing."""
    from rlhf.training.whole import is_partitioned

    return mine or (of_all[:1] if is_partitioned(accelerator) else ())
