"""How varied answers are: the share of distinct word pairs, and how much an answer repeats itself. Light: no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from rlhf.evaluation.answers import Answer
from rlhf.intervals import Interval, t_quantile
from rlhf.ppo.watch import repeated_share


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"\w+", text.lower())


def repetition(answer: Answer) -> float:
    """Share of the answer's runs of four words that it has said before, 0 to 1."""
    return repeated_share(words(answer.answer))


def distinct_2(answers: Sequence[Answer]) -> Interval | None:
    """Distinct word pairs over all word pairs of the answers, within answers (Li et al. 2016, arXiv 1510.03055).

    It falls with the number of words, so it compares answers to the same prompts, and length stands beside it. The
    interval is Student's by the jackknife: the figure without each prompt in turn. None where there is no pair.
    """
    by_prompt: dict[str, Counter[tuple[str, str]]] = {}
    for answer in answers:
        said = words(answer.answer)
        by_prompt.setdefault(answer.prompt_id, Counter()).update(pairwise(said))
    everything: Counter[tuple[str, str]] = Counter()
    for own in by_prompt.values():  # their sum would copy all that came before for each
        everything.update(own)
    total, distinct = everything.total(), len(everything)
    if not total:
        return None
    n = len(by_prompt)
    without = [
        (distinct - sum(count == everything[pair] for pair, count in own.items())) / (total - own.total())
        for own in by_prompt.values()
        if own.total() < total
    ]
    if len(without) < max(n, 2):
        return Interval(distinct / total, None, None)
    centre = fmean(without)
    error = ((n - 1) / n * sum((one - centre) ** 2 for one in without)) ** 0.5
    half = t_quantile(n - 1) * error
    return Interval(distinct / total, max(0.0, distinct / total - half), min(1.0, distinct / total + half))
