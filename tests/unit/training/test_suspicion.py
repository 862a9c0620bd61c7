"""What looks wrong about a training: each rule just beyond its threshold, and silent at it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rlhf.training.loop import TrainingResult
from rlhf.training.suspicion import suspicious_training

FALLING, RISING = [1.5] * 10 + [1.0] * 10, [1.0] * 10 + [1.5] * 10
SOUND = {"rows": 10, "steps": 20, "warmup": 19, "skipped": 1, "losses": FALLING}


def test_at_every_threshold_nothing_is_said() -> None:
    assert suspicious_training(TrainingResult(**SOUND)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 9}, "it trained on 9 rows; fewer than 10 teach nothing else"),
        (
            {"warmup": 20},
            "all of its 20 steps are warm-up (the first 20); give more rows or epochs, or make batch_size smaller",
        ),
        ({"skipped": 2}, "2 of 20 steps were not finite and skipped; lower learning_rate"),
        ({"losses": RISING}, "the loss rose from 1 to 1.5; lower learning_rate"),
        ({"losses": [float("nan")] * 2 + RISING}, "the loss rose from 1 to 1.5; lower learning_rate"),
    ],
)
def test_beyond_one_threshold_one_sentence_is_said(change: dict[str, Any], sentence: str) -> None:
    assert suspicious_training(TrainingResult(**{**SOUND, **change})) == [sentence]


@pytest.mark.parametrize("change", [{"losses": [1.0] * 20}, {"steps": 19, "warmup": 1, "skipped": 0, "losses": RISING}])
def test_a_loss_that_stands_or_has_hardly_any_steps_is_no_rise(change: dict[str, Any]) -> None:
    assert suspicious_training(TrainingResult(**{**SOUND, **change})) == []


@pytest.mark.parametrize("steps", [20, 60, 300])
def test_a_rise_within_the_noise_of_the_steps_is_none(steps: int) -> None:
    """A reward model that has not learnt stands at ln 2, and its steps' losses move by 0.02."""

    def found(seed: int, rise: float) -> list[str]:
        rng = random.Random(seed)
        losses = [0.693 + rise * i / steps + rng.gauss(0, 0.02) for i in range(steps)]
        return suspicious_training(TrainingResult(rows=10, steps=steps, losses=losses))

    assert sum(bool(found(seed, 0)) for seed in range(100)) <= 2
    assert all(found(seed, 0.15) for seed in range(100))


@pytest.mark.parametrize("steps", [20, 60, 140, 1000])
def test_a_twentieth_of_any_number_of_steps_may_be_skipped(steps: int) -> None:
    results = [TrainingResult(rows=10, steps=steps, skipped=steps // 20 + more) for more in (0, 1)]
    assert [len(suspicious_training(result)) for result in results] == [0, 1]
