"""Who judges answers: reward models through the gate, a referee, a gold scorer where the truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.scorers import VERDICT_FIELDS, GoldScorer
from rlhf.rewards.distributed import deal_out

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from rlhf.rewards.gate import GatedReward
    from rlhf.rewards.protocol import RewardFunction


def with_gold(answers: Sequence[Answer], scorer: GoldScorer) -> list[Answer]:
    """The answers with the scorer's verdicts."""
    return [replace(answer, gold=_verdict(scorer, answer)) for answer in answers]


def _verdict(scorer: GoldScorer, answer: Answer) -> dict[str, Any]:
    verdict = scorer.judge(answer.conversation)
    missing = [name for name in VERDICT_FIELDS if not hasattr(verdict, name)]
    if missing:
        raise InputError(f"scorer: its verdict on {answer.prompt_id} lacks {', '.join(missing)}")
    if is_dataclass(verdict) and not isinstance(verdict, type):
        return asdict(verdict)
    return {name: getattr(verdict, name) for name in VERDICT_FIELDS}


def with_rewards(answers: Sequence[Answer], reward: GatedReward, accelerator: Accelerator) -> list[Answer]:
    """The answers with the reward models' scores and the gate's choice; `safety` stays None without a safety model.

    An answer that a reward model saw cut is not finished where `reward.too_long` is "unfinished". All processes call it
    with the same.
    """

    def score(spoken: Sequence[Answer]) -> list[tuple[float, ...]]:
        gated = reward([a.conversation for a in spoken], [a.domain for a in spoken])
        columns = [gated.too_long.tolist(), gated.helpfulness.tolist(), gated.reward.tolist()]
        return list(zip(*columns, *([] if gated.safety is None else [gated.safety.tolist()]), strict=True))

    judged = []
    for answer, (too_long, h, r, *s) in zip(answers, _score(answers, score, accelerator), strict=True):
        unfinished = bool(too_long) and reward.too_long == "unfinished"
        finished = answer.finished and not unfinished
        judged.append(replace(answer, finished=finished, helpfulness=h, reward=r, safety=s[0] if s else None))
    return judged


def with_referee(answers: Sequence[Answer], referee: RewardFunction, accelerator: Accelerator) -> list[Answer]:
    """The answers with the referee's scores. All processes call it with the same."""
    from rlhf.rewards.scoring import check_scores

    def score(spoken: Sequence[Answer]) -> list[tuple[float, ...]]:
        scores: Tensor = check_scores(referee([a.conversation for a in spoken]), len(spoken), "referee")
        return [(value,) for value in scores.tolist()]

    scored = _score(answers, score, accelerator)
    return [replace(answer, referee=value) for answer, (value,) in zip(answers, scored, strict=True)]


def _score(
    answers: Sequence[Answer],
    score: Callable[[Sequence[Answer]], Sequence[tuple[float, ...]]],
    accelerator: Accelerator,
) -> list[tuple[float, ...]]:
    """Scores of each answer. One without text gets the lowest scores of the others, as in PPO."""
    spoken = [answer for answer in answers if answer.answer]
    if not spoken:
        raise InputError("policy: every answer it gave is empty; there is nothing to score")
    scores = deal_out(spoken, score, accelerator)
    lowest = tuple(min(column) for column in zip(*scores, strict=True))
    own = iter(scores)
    return [next(own) if answer.answer else lowest for answer in answers]
