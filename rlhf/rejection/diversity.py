"""Self-BLEU: how alike the answers to one prompt are (Llama 2 paper, figure 21; Zhu et al. 2018; decision 55).

Each answer's BLEU-4 with all other answers to its prompt as references, as sacrebleu's sentence BLEU has it (orders up
to the answer's length, exponential smoothing), from 0 (nothing in common) to 1 (all the same).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

ORDERS = 4


def self_bleu(answers: Sequence[str]) -> float:
    """Mean over the answers to one prompt of each one's BLEU against the others.

    Tokens are lower-case words and punctuation marks; an answer without any has BLEU 0.

    Raises:
        ValueError: fewer than two answers.
    """
    if len(answers) < 2:
        raise ValueError(f"answers: Self-BLEU compares two or more, got {len(answers)}")
    tokens = [re.findall(r"\w+|[^\w\s]", answer.lower()) for answer in answers]
    matched = [_matches(tokens, order) for order in range(1, ORDERS + 1)]
    lengths = [len(own) for own in tokens]
    return fmean(
        _bleu([matches[i] for matches in matched], length, lengths[:i] + lengths[i + 1 :])
        for i, length in enumerate(lengths)
    )


def _matches(tokens: Sequence[Sequence[str]], order: int) -> list[int]:
    """Of each answer the n-grams that another answer has too, each as often as the one that has it most often."""
    counts = [Counter(tuple(own[i : i + order]) for i in range(len(own) - order + 1)) for own in tokens]
    most: dict[tuple[str, ...], tuple[int, int]] = {}  # n-gram -> the two highest counts
    for own in counts:
        for gram, count in own.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (max(first, count), max(second, min(first, count)))
    found = []
    for own in counts:
        others = ((count, most[gram][1 if count == most[gram][0] else 0]) for gram, count in own.items())
        found.append(sum(min(count, highest) for count, highest in others))
    return found


def _bleu(matches: Sequence[int], length: int, others: Sequence[int]) -> float:
    """BLEU from the clipped matches of orders 1, 2, .., of an answer of that many tokens; `others`: the references'."""
    if not length or not matches[0]:
        return 0.0
    closest = min(others, key=lambda other: (abs(other - length), other))
    logs = []
    smooth = 1
    for order, found in enumerate(matches[:length], start=1):
        if not found:
            smooth *= 2
        logs.append(math.log((found or 1 / smooth) / (length - order + 1)))
    return math.exp(fmean(logs) + min(0.0, 1 - closest / length))
