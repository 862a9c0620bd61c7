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


def with_rewards(
    answers: Sequence[Answer], helpfulness: RewardFunction, safety: RewardFunction, accelerator: Accelerator
) -> list[Answer]:
    """The answers with both reward models' scores and the gate's choice. All processes call it with the same."""
    from rlhf.rewards.gate import gated_rewards

    def score(spoken: Sequence[Answer]) -> list[tuple[float, ...]]:
        gated = gated_rewards([a.conversation for a in spoken], [a.domain for a in spoken], helpfulness, safety)
        return list(zip(gated.helpfulness.tolist(), gated.safety.tolist(), gated.reward.tolist(), strict=True))

    scored = _score(answers, score, accelerator)
    return [replace(a, helpfulness=h, safety=s, reward=r) for a, (h, s, r) in zip(answers, scored, strict=True)]


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
