"""What the owner of a batch sees of its annotators: agreement, pairs whose answer is known, and pace.

Speed alone says little: read it beside agreement and gold. Light: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TypedDict

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import GOLD, Store
from rlhf.intervals import wilson

FAR = 3.0  # a median so many times above or below that of all annotators is an outlier
HASTY = 0.2  # of everybody's median seconds: a judgement quicker than that was hardly read


class Share(TypedDict):
    """`hits` of `of`, as a rate with Wilson's 95 % interval."""

    hits: int
    of: int
    rate: float
    ci: list[float] | None


class AnnotatorFigures(TypedDict):
    """Of one annotator, over all batches that people are asked about.

    judgements, skipped: how many. median_seconds: from showing a pair to its judgement. pace: "fast" or "slow" where
    that is far from the other annotators', else "usual"; None where it is not known. hasty: judgements quicker than a
    fifth of everybody's median. agreement: choices that another annotator of the pair shares. gold: pairs with a known
    answer that they judged rightly; these are in no other figure. left: choices of the left answer; far from a half,
    somebody looks at one side only.
    """

    judgements: int
    skipped: int
    median_seconds: float | None
    pace: str | None
    hasty: Share | None
    agreement: Share | None
    gold: Share | None
    left: Share | None


def annotator_figures(store: Store) -> dict[str, AnnotatorFigures]:
    """Figures by annotator, by name."""
    asked = [j for batch in store.batches(people=True) for *_, j in store.judged(batch)]
    gold = [(pair, j) for *_, pair, j in store.judged(GOLD)] if GOLD in store.batches() else []
    names = sorted({j.annotator for j in asked} | {j.annotator for _, j in gold})
    medians = {name: _median([j for j in asked if j.annotator == name]) for name in names}
    return {
        name: _figures(
            [j for j in asked if j.annotator == name],
            [j for j in asked if j.annotator != name],
            [(pair, j) for pair, j in gold if j.annotator == name],
            _median(asked),
            [m for other, m in medians.items() if other != name and m is not None],
        )
        for name in names
    }


def _figures(
    own: Sequence[Judgement],
    others: Sequence[Judgement],
    gold: Sequence[tuple[Pair, Judgement]],
    usual: float | None,
    medians: Sequence[float],
) -> AnnotatorFigures:
    chosen = [j for j in own if j.choice is not None]
    choices: dict[str, list[str]] = {}
    for j in others:
        if j.choice is not None:
            choices.setdefault(j.pair, []).append(j.choice)
    same = [choice == j.choice for j in chosen for choice in choices.get(j.pair, ())]
    seconds = [j.seconds for j in chosen if j.seconds is not None]
    sides = [j.choice == j.left for j in chosen if j.left is not None and j.choice != "tie"]
    # the pairs of GOLD are preference rows: a is the answer that was chosen there
    right = [j.choice == "a" for _, j in gold if j.choice is not None]
    mine = _median(own)
    return {
        "judgements": len(chosen),
        "skipped": len(own) - len(chosen),
        "median_seconds": mine,
        "pace": _pace(mine, medians),
        "hasty": None if not usual else _share([s < HASTY * usual for s in seconds]),
        "agreement": _share(same),
        "gold": _share(right),
        "left": _share(sides),
    }


def _pace(mine: float | None, others: Sequence[float]) -> str | None:
    if mine is None or not others:
        return None
    usual = median(others)
    return "fast" if mine * FAR < usual else "slow" if mine > FAR * usual else "usual"


def _median(judgements: Sequence[Judgement]) -> float | None:
    seconds = [j.seconds for j in judgements if j.seconds is not None and j.choice is not None]
    return median(seconds) if seconds else None


def _share(hits: Sequence[bool]) -> Share | None:
    if not hits:
        return None
    rate = sum(hits) / len(hits)
    return {"hits": sum(hits), "of": len(hits), "rate": rate, "ci": wilson(rate, len(hits)).ci}
