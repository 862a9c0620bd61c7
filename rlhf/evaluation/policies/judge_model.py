"""A judge model's verdicts on a version's answers against another's: win rates, the prompt being the unit. Light.

What the judge is asked and how it is read is in `rlhf.rewards.pair_judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, cast, get_args

from rlhf.conversation import Conversation, decided
from rlhf.data.rows import Domain
from rlhf.evaluation.answers import Answer, by_prompt
from rlhf.intervals import rate_interval
from rlhf.rewards.pair_judge import Opinion, TwoAnswers, judge_counts, judge_requests, opinion


class JudgeFigures(TypedDict, total=False):
    """What a judge model says of a version: the share of comparisons that it wins, over all prompts and by domain."""

    judge_model: str
    judge_opponent: str
    judge_counts: dict[str, int]
    judge_win_rate: float | None
    judge_win_rate_ci: list[float] | None
    judge_win_rate_helpfulness: float | None
    judge_win_rate_helpfulness_ci: list[float] | None
    judge_win_rate_safety: float | None
    judge_win_rate_safety_ci: list[float] | None


def judged_outcomes(
    answers: Sequence[Answer],
    opponents: Sequence[Answer],
    ask: Callable[[Sequence[Conversation]], Sequence[str]],
) -> tuple[list[float | None], list[Opinion]]:
    """Each answer's outcome against an opponent's answer to its prompt, and the opinions that the judge was asked for.

    Equal answers tie and an empty one loses without a judge. The opponent's answer is that of the same index, where
    there are fewer the index over again; the outcome is None where there is none, or no judgement could be read.

    Args:
        answers, opponents: to the same prompts.
        ask: gives the judge's text for each request.
    """
    theirs: dict[str, list[str]] = {}
    for other in opponents:
        theirs.setdefault(other.prompt_id, []).append(other.answer.strip())
    outcomes: list[float | None] = []
    asked: list[tuple[int, TwoAnswers]] = []
    for position, answer in enumerate(answers):
        mine, others = answer.answer.strip(), theirs.get(answer.prompt_id)
        if others is None:
            outcomes.append(None)
            continue
        other_text = others[answer.index % len(others)]
        outcomes.append(decided(mine, other_text))
        if outcomes[-1] is None:
            asked.append((position, TwoAnswers(answer.messages, mine, other_text, answer.domain)))
    texts = ask([request for _, pair in asked for request in judge_requests(pair)]) if asked else []
    opinions = [opinion(*texts[start : start + 2]) for start in range(0, len(texts), 2)]
    for (position, _), found in zip(asked, opinions, strict=True):
        outcomes[position] = found.outcome
    return outcomes, opinions


def judge_figures(
    answers: Sequence[Answer], outcomes: Sequence[float | None], opinions: Sequence[Opinion], judge: str, opponent: str
) -> JudgeFigures:
    """What a version's figures say of the judge.

    Ties count half, pairs that no judgement decided are left out, the prompt is the unit of the intervals. Rates are
    None without pairs.
    """
    by_answer = {id(answer): outcome for answer, outcome in zip(answers, outcomes, strict=True)}
    figures: dict[str, Any] = {"judge_model": judge, "judge_opponent": opponent, "judge_counts": judge_counts(opinions)}
    for domain in (None, *get_args(Domain)):
        own = [answer for answer in answers if domain in (None, answer.domain)]
        found = rate_interval(by_prompt(own, lambda answer: by_answer[id(answer)]))
        name = "judge_win_rate" if domain is None else f"judge_win_rate_{domain}"
        ci = None if found is None else found.ci
        figures[name] = None if found is None else round(found.mean, 6)
        figures[f"{name}_ci"] = None if ci is None else [round(x, 6) for x in ci]
    return cast(JudgeFigures, figures)
