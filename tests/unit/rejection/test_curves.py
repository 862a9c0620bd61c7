"""Curves from one draw, and the choice of a temperature."""

from __future__ import annotations

import itertools
import random
from statistics import fmean, median

import pytest
import torch

from rlhf.intervals import mean_interval
from rlhf.objectives.best_of_n import kl_bound
from rlhf.rejection.curves import best_temperature, reward_curve


def test_every_point_is_brute_force_over_all_subsets() -> None:
    rewards = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    texts = [[f"{p} {i}" for i in range(6)] for p in range(5)]
    curve = reward_curve(rewards, texts)
    assert [point["k"] for point in curve] == [1, 2, 3, 4, 5, 6]
    for point in curve:
        for name, value in (("max", max), ("median", median)):
            by_prompt = [fmean(map(value, itertools.combinations(row, point["k"]))) for row in rewards.tolist()]
            expected = mean_interval(by_prompt)
            assert expected is not None and expected.ci is not None
            assert point[name] == pytest.approx(expected.mean, abs=1e-6)
            assert point[f"{name}_ci"] == pytest.approx(expected.ci, abs=1e-6)
        assert point["kl_estimate"] == pytest.approx(kl_bound(point["k"])), "no answer was drawn twice"


def test_uniform_rewards_give_n_over_n_plus_one() -> None:
    rewards = torch.rand(4000, 8, generator=torch.Generator().manual_seed(0))
    for point in reward_curve(rewards, [[str(i) for i in range(8)]] * 4000):
        low, high = point["max_ci"]
        assert low < point["k"] / (point["k"] + 1) < high and high - low < 0.02
        assert abs(point["median"] - 0.5) < 0.01, "the median is flat"


def test_repeated_answers_lower_the_kl() -> None:
    always = reward_curve(torch.ones(3, 4), [["yes"] * 4] * 3)
    assert [point["kl_estimate"] for point in always] == [0.0] * 4, "choosing among equals changes nothing"
    twice = reward_curve(torch.tensor([[1.0, 2.0, 3.0, 3.0]]), [["a", "b", "c", "c"]])
    assert twice[0]["max_ci"] is None
    for point in twice[1:]:
        assert 0 < point["kl_estimate"] < point["kl_bound"]


def test_the_best_temperature_and_how_sure_it_is() -> None:
    rng = random.Random(0)
    prompts = [rng.gauss(0, 3) for _ in range(60)]  # prompts differ far more than temperatures: the draws are paired
    clear = best_temperature({1.2: [p + 0.5 for p in prompts], 0.6: prompts, 0.9: [p + 0.2 for p in prompts]})
    assert clear == {"temperature": 1.2, "ci": [1.2, 1.2], "best_share": {"0.6": 0.0, "0.9": 0.0, "1.2": 1.0}}
    noisy = {t: [p + rng.gauss(0, 1) for p in prompts] for t in (0.6, 0.9, 1.2)}
    unsure = best_temperature(noisy)
    assert unsure["temperature"] == max(noisy, key=lambda t: fmean(noisy[t]))
    low, high = unsure["ci"]
    assert low < high and low <= unsure["temperature"] <= high
    assert sum(unsure["best_share"].values()) == pytest.approx(1)
    assert best_temperature(noisy) == unsure, "no seed to choose: the same figures every time"
    assert best_temperature({0.9: prompts, 0.6: prompts})["temperature"] == 0.6
