"""The paper's learning-rate schedule: warm-up max(5, 3 %), last rate 10 % of the peak."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.training.config import OptimizerConfig


@pytest.mark.parametrize(("total", "warmup"), [(20, 5), (100, 5), (167, 6), (1000, 30)])
def test_warmup_is_three_percent_but_at_least_five_steps(total: int, warmup: int) -> None:
    config = OptimizerConfig(learning_rate=1e-5, warmup_fraction=0.03, warmup_min_steps=5)
    rates = [config.learning_rate_at(step, total) for step in range(total)]
    assert rates[:warmup] == pytest.approx([1e-5 * (step + 1) / warmup for step in range(warmup)])
    assert rates.index(max(rates)) == warmup - 1 and max(rates) == 1e-5
    assert all(later < earlier for earlier, later in zip(rates[warmup - 1 :], rates[warmup:], strict=False))


@pytest.mark.parametrize("total", [6, 20, 1000])
def test_cosine_ends_at_ten_percent(total: int) -> None:
    config = OptimizerConfig(learning_rate=1e-5, warmup_min_steps=5)
    assert config.learning_rate_at(total - 1, total) == pytest.approx(1e-6)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.0)
    assert config.learning_rate_at(49, 100) == pytest.approx(0.55)
    assert config.learning_rate_at(24, 100) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_constant_stays_at_the_peak() -> None:
    config = OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup_fraction=0.0)
    assert {config.learning_rate_at(step, 300) for step in range(300)} == {1e-6}


@pytest.mark.parametrize(("total", "warmup"), [(1, 1), (3, 1), (4, 1), (8, 2), (19, 5), (20, 5)])
def test_warmup_takes_at_most_a_quarter_of_a_short_training(total: int, warmup: int) -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_min_steps=5)
    assert config.warmup_steps(total) == warmup
    rates = [config.learning_rate_at(step, total) for step in range(total)]
    assert rates[warmup - 1] == max(rates) == 1.0 and min(rates) > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", 1e38),
        ("batch_size", 0),
        ("final_fraction", 1.5),
        ("weight_decay", -0.1),
        ("warmup_min_steps", -1),
        ("betas", (0.9, 1.0)),
    ],
)
def test_bad_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{field}: must .* got {re.escape(str(value))}"):
        OptimizerConfig(**{field: value})
