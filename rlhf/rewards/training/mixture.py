"""What a reward model is trained on: its own rows, those drawn from the others, and pairs of cut answers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rlhf.data.mixing import mix
from rlhf.rewards.training.rows import RewardRows, Skipped
from rlhf.rewards.training.table import PairTable


@dataclass(frozen=True)
class Mixture:
    """What is trained on, in random order.

    By source: how many are `own`, how many `other`, and from how many those were drawn.

    Args:
        rows: the people's pairs.
        training: these and those of `RewardRows.cut_off`.
    """

    rows: PairTable
    training: PairTable
    own: Counter[str]
    other: Counter[str]
    other_available: Counter[str]


def make_mixture(rows: RewardRows, other_share: float, seed: int) -> Mixture:
    """All own rows, and so many of the others, drawn uniformly, that they are `other_share` of the whole (`mix`).

    The pairs of cut answers, where there are any, are strewn among them.
    """
    own = len(rows.own)
    order = mix(range(own), range(own, own + len(rows.other)), other_share, seed)
    orders = order, [i for i in order if i < own], [i for i in order if i >= own]
    mixed, mine, others = (rows.own.followed_by(rows.other, part) for part in orders)
    training = mixed
    if rows.cut_off is not None:
        added = own + len(rows.other)
        order = [*order, *range(added, added + len(rows.cut_off))]
        random.Random(f"cut off/{seed}").shuffle(order)
        training = rows.own.followed_by(rows.other).followed_by(rows.cut_off, order)
    return Mixture(mixed, training, mine.sources(), others.sources(), rows.other.sources())


def mixture_lines(mixture: Mixture) -> list[str]:
    """The counts in words, a line a source."""
    own = [f"mixture: all {count} own pairs of {source}" for source, count in mixture.own.most_common()]
    others = [
        f"mixture: {mixture.other[source]} of {count} other pairs of {source}"
        for source, count in mixture.other_available.most_common()
    ]
    cut = len(mixture.training) - len(mixture.rows)
    return own + others + ([f"mixture: {cut} pairs of a chosen answer and itself cut off"] if cut else [])


def mixture_report(mixture: Mixture, skipped: Skipped) -> dict[str, Any]:
    """What `mixture.json` holds.

    Returns:
        {"pairs" that people judged, "cut_off": those of cut answers, "other_share" as it turned out, "own", "other",
        "other_available": pairs by source,
        "skipped": field -> file or hub name (of pairs that are too long the rows' source) -> reason -> rows}.
    """
    return {
        "pairs": len(mixture.rows),
        "cut_off": len(mixture.training) - len(mixture.rows),
        "other_share": mixture.other.total() / len(mixture.rows),
        "own": dict(mixture.own),
        "other": dict(mixture.other),
        "other_available": dict(mixture.other_available),
        "skipped": {
            name: {source: dict(reasons) for source, reasons in sources.items() if reasons}
            for name, sources in skipped.items()
        },
    }
