"""PPO's settings: the paper's figures, partial overrides, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.ppo.config import PPOConfig


@dataclass(frozen=True)
class Holder:
    """Holds PPO's settings as a recipe does.

    Args:
        ppo: settings.
    """

    ppo: PPOConfig = field(default_factory=PPOConfig)


def test_defaults_are_the_papers_figures() -> None:
    """The paper, section 3.2.3."""
    config = PPOConfig()
    optimizer = config.optimizer
    assert (config.batch_size, optimizer.batch_size, optimizer.epochs) == (512, 64, 1)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.max_grad_norm) == (
        (0.9, 0.95),
        1e-5,
        0.1,
        1.0,
    )
    assert [optimizer.learning_rate_at(step, 1600) for step in (0, 800, 1599)] == [1e-6] * 3
    assert (config.clip_range, config.beta, config.gamma, config.lam, config.value_coefficient) == (
        0.2,
        0.01,
        1,
        0.95,
        0.1,
    )
    assert 200 <= config.iterations <= 400


def test_setting_one_field_keeps_the_papers_others() -> None:
    """The optimizer's class has other defaults (2e-5, cosine): they must not come back with a partial override."""
    config = parse_config(Holder, ["--ppo.optimizer.batch_size", "32", "--ppo.beta", "0.005"]).ppo
    assert (config.optimizer.batch_size, config.beta) == (32, 0.005)
    assert (config.optimizer.learning_rate, config.optimizer.schedule, config.optimizer.warmup_fraction) == (
        1e-6,
        "constant",
        0,
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"iterations": 0}, "iterations: must be at least 1, got 0"),
        ({"clip_range": 0.0}, "clip_range: must be above 0, got 0.0"),
        ({"beta": -0.1}, "beta: must be 0 or above, got -0.1"),
        ({"lam": 1.5}, "lam: must lie between 0 and 1, got 1.5"),
        ({"estimator": "rloo"}, "estimator: rloo compares answers to the same prompt; set samples_per_prompt to 2 or"),
        ({"target_kl": -1.0}, "target_kl: must be above 0, got -1.0"),
        ({"target_kl": 6.0, "beta": 0.0}, "start with a beta above 0"),
        ({"max_repetition": 0.0}, "max_repetition: must be above 0, got 0.0"),
        ({"checkpoint_every": 0}, "checkpoint_every: must be at least 1, got 0"),
        ({"max_kl": 0.0}, "max_kl: must be above 0, got 0.0"),
        ({"batch_size": 10, "samples_per_prompt": 4}, "batch_size: 10 must be a multiple of samples_per_prompt"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PPOConfig(**settings)
