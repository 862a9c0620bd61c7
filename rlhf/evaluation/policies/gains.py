"""What a version gains over the start, prompt by prompt: as it is, at equal length, and by finished answers alone.

A judge that likes long answers pays for length. So the lead in score is also regressed on the lead in length, over the
prompts, and its intercept is the gain of answers that are no longer than the start's: the idea of length-controlled
AlpacaEval (Dubois et al. 2024, arXiv 2404.04475), linear in tokens, since the scores are not win rates (decision 62).

A judge may also like or dislike answers that are cut off, which it was not trained on, and versions differ in how many
of theirs are. So the lead is also taken between the finished answers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, cast

from rlhf.evaluation.answers import Answer, Value, by_prompt, value_of
from rlhf.intervals import Interval, intercept_interval, mean_interval

SCORES = {
    "proxy_reward": "reward",
    "proxy_helpfulness": "helpfulness",
    "proxy_safety": "safety",
    "referee": "referee",
}
"""Name of a score's gain -> field of an answer."""


class GainFigures(TypedDict):
    """Mean leads over the start's answers to the same prompts, raw scores and tokens, and at equal length.

    gain_finished: between finished answers, over the prompts that have some of both; None where all are finished.
    """

    proxy_reward_gain: float | None
    proxy_reward_gain_ci: list[float] | None
    proxy_reward_gain_equal_length: float | None
    proxy_reward_gain_equal_length_ci: list[float] | None
    proxy_reward_gain_finished: float | None
    proxy_reward_gain_finished_ci: list[float] | None
    proxy_helpfulness_gain: float | None
    proxy_helpfulness_gain_ci: list[float] | None
    proxy_helpfulness_gain_equal_length: float | None
    proxy_helpfulness_gain_equal_length_ci: list[float] | None
    proxy_helpfulness_gain_finished: float | None
    proxy_helpfulness_gain_finished_ci: list[float] | None
    proxy_safety_gain: float | None
    proxy_safety_gain_ci: list[float] | None
    proxy_safety_gain_equal_length: float | None
    proxy_safety_gain_equal_length_ci: list[float] | None
    proxy_safety_gain_finished: float | None
    proxy_safety_gain_finished_ci: list[float] | None
    referee_gain: float | None
    referee_gain_ci: list[float] | None
    referee_gain_equal_length: float | None
    referee_gain_equal_length_ci: list[float] | None
    referee_gain_finished: float | None
    referee_gain_finished_ci: list[float] | None
    length_gain: float | None
    length_gain_ci: list[float] | None


def gain_figures(answers: Sequence[Answer], opponents: Sequence[Answer]) -> GainFigures:
    """All gains; None where nothing measured them. The prompt is the unit: its answers' leads are averaged first.

    Args:
        opponents: the start's answers to the same prompts, judged by the same judges.
    """
    longer = dict(zip(map(id, answers), leads(answers, opponents, lambda a: float(a.length)), strict=True))
    finished, against = ([a for a in both if a.finished] for both in (answers, opponents))
    all_finished = len(finished) == len(answers) and len(against) == len(opponents)
    figures: dict[str, Any] = {}
    for name, field in SCORES.items():
        ahead = dict(zip(map(id, answers), leads(answers, opponents, value_of(field)), strict=True))
        known = [answer for answer in answers if ahead[id(answer)] is not None]
        gains = by_prompt(known, lambda a, ahead=ahead: ahead[id(a)])  # type: ignore[misc]
        lengths = by_prompt(known, lambda a: longer[id(a)])
        of_finished = dict(zip(map(id, finished), leads(finished, against, value_of(field)), strict=True))
        both_end = [] if all_finished else [a for a in finished if of_finished[id(a)] is not None]
        for which, found in (
            ("gain", mean_interval(gains)),
            ("gain_equal_length", intercept_interval(lengths, gains)),
            ("gain_finished", mean_interval(by_prompt(both_end, lambda a, of=of_finished: of[id(a)]))),  # type: ignore[misc]
        ):
            figures |= _named(f"{name}_{which}", found)
    figures |= _named("length_gain", mean_interval(by_prompt(answers, lambda a: longer[id(a)])))
    return cast(GainFigures, figures)


def _named(name: str, found: Interval | None) -> dict[str, Any]:
    return {name: None if found is None else found.mean, f"{name}_ci": None if found is None else found.ci}


def leads(answers: Sequence[Answer], opponents: Sequence[Answer], value: Value) -> list[float | None]:
    """By how much each answer's value lies above the opponent's to its prompt, on average; None without any."""

    def lead(mine: Answer, theirs: Answer) -> float | None:
        own, other = value(mine), value(theirs)
        return None if own is None or other is None else own - other

    return outcomes_against(answers, opponents, lead)


def outcomes_against(
    answers: Sequence[Answer], opponents: Sequence[Answer], outcome: Callable[[Answer, Answer], float | None]
) -> list[float | None]:
    """Each answer's mean outcome against all of the opponent's answers to its prompt; None without any."""
    theirs: dict[str, list[Answer]] = {}
    for answer in opponents:
        theirs.setdefault(answer.prompt_id, []).append(answer)
    means: list[float | None] = []
    for answer in answers:
        found = [outcome(answer, other) for other in theirs.get(answer.prompt_id, [])]
        known = [value for value in found if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means
