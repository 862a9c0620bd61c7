"""Several answers to one prompt into pairs: by score, by rank, by a label good or bad; strength from scores."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import combinations
from typing import Any, Literal

from rlhf.data.layouts.declaration import is_empty
from rlhf.data.rows import Strength
from rlhf.errors import InputError, quoted

MAX_PAIRS = 10
LEAVE_OUT = "leave such rows out (on_bad_row: skip)"
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
        raise InputError(f"{field}: no two answers differ in score, got {[s for _, s in scored]}; {LEAVE_OUT}")
    pairs = _at_most(pairs, prompt)
    strengths = [None if width is None else strength_of(abs(one[1] - other[1]), width) for one, other in pairs]
    return [
        {"prompt": prompt, "chosen": one[0], "rejected": other[0], "strength": strength}
        for (one, other), strength in zip(pairs, strengths, strict=True)
    ]


def good_and_bad_pairs(prompt: Any, judged: Sequence[tuple[Any, Any]], field: str) -> list[dict[str, Any]]:
    """Every good answer with every bad one, at most MAX_PAIRS; `judged` are (answer, is it good)."""
    labels = []
    for _, label in judged:
        labels.append(flag_of(label))
        if labels[-1] is None:
            raise InputError(f"{field}: must be true or false, got {quoted(label)}")
    answers = [answer for answer, _ in judged]
    good_answers = [answer for answer, good in zip(answers, labels, strict=True) if good]
    bad_answers = [answer for answer, good in zip(answers, labels, strict=True) if not good]
    pairs = [(good, bad) for good in good_answers for bad in bad_answers]
    if not pairs:
        raise InputError(f"{field}: no good and bad answer to one prompt, which would make a pair, got {labels[:3]}")
    return [{"prompt": prompt, "chosen": good, "rejected": bad} for good, bad in _at_most(pairs, prompt)]


def _at_most(pairs: list[Any], prompt: Any) -> list[Any]:
    return random.Random(str(prompt)).sample(pairs, MAX_PAIRS) if len(pairs) > MAX_PAIRS else pairs


def number_of(field: str, value: Any) -> float:
    """A finite number, or the text of one, as csv files have it; InputError for anything else."""
    if is_empty(value):
        raise InputError(f"{field}: an answer has no score to compare it by, got {quoted(value)}; {LEAVE_OUT}")
    try:
        number = float(value) if isinstance(value, (str, Decimal)) else value
        if not isinstance(number, bool) and isinstance(number, (int, float)) and math.isfinite(number):
            return number
    except (OverflowError, ValueError):  # an integer beyond every float; a text of none
        pass
    raise InputError(f"{field}: must be a number, got {quoted(value)}")


def flag_of(value: Any) -> bool | None:
    """Yes or no, as 1 or 0 too, and as text, as csv files have it; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if value in (True, False) else None


def flag_in(value: Any) -> Any:
    """A text's yes or no; what is another text, or no text, as it stands."""
    flag = flag_of(value) if isinstance(value, str) else None
    return value if flag is None else flag
