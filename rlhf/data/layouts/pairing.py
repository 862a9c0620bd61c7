"""Several answers to one prompt into pairs: by score, by rank, by a label good or bad; strength from scores."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

from rlhf.data.rows import Strength
from rlhf.errors import InputError, quoted

MAX_PAIRS = 10
SHARES: tuple[tuple[float, Strength], ...] = (
    (0.75, "significantly"),
    (0.5, "better"),
    (0.25, "slightly"),
    (0.0, "negligibly"),
)


def strength_of(difference: float, width: float) -> Strength:
    """How much better an answer is whose score is higher by `difference` > 0 on a scale from lowest to highest `width`.

    By their share: from 3/4 on significantly, from 1/2 better, from 1/4 slightly, below negligibly. So on HelpSteer's
    helpfulness (0 to 4) one point is slightly, two are better, three or four significantly. Decision 12.
    """
    return next(strength for share, strength in SHARES if difference >= share * width)


def ranked_pairs(
    prompt: Any,
    answers: Sequence[tuple[Any, Any]],
    field: str,
    width: float | None,
    best: Literal["highest", "lowest"] = "highest",
) -> list[dict[str, Any]]:
    """Pairs of (answer, score) whose scores differ, the better chosen; above MAX_PAIRS so many are drawn by the prompt.

    With a strength where the scale's width is known.
    """
    sign = 1 if best == "highest" else -1
    scored = sorted(((answer, number_of(field, score)) for answer, score in answers), key=lambda item: -sign * item[1])
    pairs = [(one, other) for one, other in combinations(scored, 2) if one[1] != other[1]]
    if not pairs:
        raise InputError(f"{field}: no two answers differ in score, got {[score for _, score in scored]}")
    pairs = _at_most(pairs, prompt)
    strengths = [None if width is None else strength_of(abs(one[1] - other[1]), width) for one, other in pairs]
    return [
        {"prompt": prompt, "chosen": one[0], "rejected": other[0], "strength": strength}
        for (one, other), strength in zip(pairs, strengths, strict=True)
    ]


def good_and_bad_pairs(prompt: Any, judged: Sequence[tuple[Any, Any]], field: str) -> list[dict[str, Any]]:
    """Every good answer with every bad one, at most MAX_PAIRS; `judged` are (answer, is it good)."""
    for _, label in judged:
        if label not in (True, False):
            raise InputError(f"{field}: must be true or false, got {quoted(label)}")
    pairs = [(good, bad) for good, label in judged if label for bad, other in judged if not other]
    if not pairs:
        labels = [label for _, label in judged]
        raise InputError(f"{field}: no good and bad answer to one prompt, which would make a pair, got {labels[:3]}")
    return [{"prompt": prompt, "chosen": good, "rejected": bad} for good, bad in _at_most(pairs, prompt)]


def _at_most(pairs: list[Any], prompt: Any) -> list[Any]:
    return random.Random(str(prompt)).sample(pairs, MAX_PAIRS) if len(pairs) > MAX_PAIRS else pairs


def number_of(field: str, value: Any) -> float:
    """A finite number; InputError for anything else."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return value
    except OverflowError:  # an integer beyond every float
        pass
    raise InputError(f"{field}: must be a number, got {quoted(value)}")
