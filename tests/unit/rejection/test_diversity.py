"""Self-BLEU against sacrebleu's figures and by hand."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from rlhf.rejection.diversity import self_bleu


def test_the_same_answers_as_sacrebleu() -> None:
    """Printed by sacrebleu 2.6.0: BLEU(effective_order=True, smooth_method="exp", tokenize="none").sentence_score."""
    answers = ["The river of Velda is Mora.", "the river of velda is tarn .", "it is mora .", "mora ."]
    answers += ["the the the river", "mora"]
    printed = [79.52707287670508, 64.34588841607616, 59.460355750136046, 100.0, 31.947155212313625, 36.78794411714425]
    assert self_bleu(answers) == pytest.approx(fmean(printed) / 100)
    printed = [16.233395773754953, 100.0, 37.99178428257963, 0.0]
    assert self_bleu(["a b c d e f", "x y z", "a b x y z w", "p q"]) == pytest.approx(fmean(printed) / 100)


def test_ends_of_the_scale() -> None:
    assert self_bleu(["The same.", "the same ."]) == pytest.approx(1)
    assert self_bleu(["no word", "of mine"]) == 0
    assert self_bleu(["", "   ", "word"]) == 0
    with pytest.raises(ValueError, match="two or more, got 1"):
        self_bleu(["alone"])


def test_repeating_what_another_says_once_is_clipped() -> None:
    # "a a": one of two a's is found, no pair of them: precisions 1/2 and 1/2 (smoothed); "a" is short: exp(1 - 2)
    assert self_bleu(["a a", "a"]) == pytest.approx((math.sqrt(0.5 * 0.5) + math.exp(-1)) / 2)
