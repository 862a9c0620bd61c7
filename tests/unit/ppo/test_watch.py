"""The rules that watch PPO, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.watch import limit_passed, repeated_share, suspicious_run, warnings


def test_repeated_share_by_hand() -> None:
    assert repeated_share([1, 2, 3, 4, 5]) == 0.0
    assert repeated_share([1, 2, 3]) == 0.0, "no 4-gram"
    assert repeated_share([7] * 13) == pytest.approx(0.9)  # ten 4-grams, all the same
    assert repeated_share([1, 2, 1, 2, 1], n=2) == 0.5  # 12 21 12 21


def test_limits() -> None:
    config = PPOConfig(max_kl=5.0, max_repetition=0.3)
    assert limit_passed({"kl": 5.0, "repetition": 0.3}, config) is None
    assert limit_passed({"kl": 5.1, "repetition": 0.9}, config) == "max_kl"
    assert limit_passed({"kl": 0.1, "repetition": 0.31}, config) == "max_repetition"
    assert limit_passed({"kl": 99.0, "repetition": 1.0}, PPOConfig()) is None
    assert limit_passed({}, config) is None, "an evaluation after the last iteration has neither"


@pytest.mark.parametrize(("ratio", "warned"), [(1.0, False), (1.0005, False), (0.99, True), (1.02, True)])
def test_a_ratio_that_is_not_one(ratio: float, warned: bool) -> None:
    found = warnings({"first_ratio": ratio}, [])
    assert bool(found) == warned
    assert not warned or f"{ratio:.4f}, not 1" in found[0]


def test_steps_left_out() -> None:
    assert warnings({"skipped": 0}, []) == []
    assert "2 steps were left out" in warnings({"skipped": 2}, [])[0]


def _evaluations(**columns: list[float]) -> list[dict[str, Any]]:
    rows = zip(*columns.values(), strict=True)
    return [{f"heldout_{name}": value for name, value in zip(columns, row, strict=True)} for row in rows]


def _warned(evaluations: list[dict[str, Any]]) -> list[str]:
    return warnings(evaluations[-1], evaluations)


def test_answers_that_come_to_repeat_themselves() -> None:
    assert (
        "repeat themselves: 30% of their 4-grams, at first 5%"
        in _warned(_evaluations(reward=[1.0, 2.0], repetition=[0.05, 0.3]))[0]
    )
    assert _warned(_evaluations(reward=[1.0, 2.0], repetition=[0.25, 0.3])) == [], "they always did"
    assert _warned(_evaluations(reward=[1.0, 2.0], repetition=[0.01, 0.1])) == []


def test_reward_up_while_the_referee_falls() -> None:
    error = [0.1] * 3
    fell = _evaluations(reward=[1.0, 1.5, 2.0], referee=[0.5, 0.8, 0.55], referee_error=error)
    assert "rose from 1.500 to 2.000 while the referee fell from 0.800 to 0.550" in _warned(fell)[0]
    noise = _evaluations(reward=[1.0, 1.5, 2.0], referee=[0.5, 0.8, 0.65], referee_error=error)
    both_fell = _evaluations(reward=[1.0, 1.5, 1.4], referee=[0.5, 0.8, 0.55], referee_error=error)
    both_rose = _evaluations(reward=[1.0, 1.5, 2.0], referee=[0.5, 0.8, 0.9], referee_error=error)
    assert _warned(noise) == _warned(both_fell) == _warned(both_rose) == []


def test_held_out_rules_speak_at_evaluations_only() -> None:
    fell = _evaluations(reward=[1.0, 2.0], referee=[0.8, 0.1], referee_error=[0.1, 0.1])
    assert warnings({"first_ratio": 1.0}, fell) == []


START = {"step": 0, "heldout_reward": 0.0, "heldout_kl": 0.0, "heldout_finished_share": 1.0, "heldout_length": 100}
BEST = {"step": 2, "heldout_reward": 1.0, "heldout_kl": 20.0, "heldout_finished_share": 0.7, "heldout_length": 150}


def test_a_run_at_every_threshold_is_not_suspicious() -> None:
    worse = BEST | {"step": 4, "heldout_kl": 99.0, "heldout_finished_share": 0.0, "heldout_length": 999}
    assert suspicious_run(2, [START, {"step": 1}, BEST, worse]) == [], "the policy that is not kept does not count"
    assert suspicious_run(2, [START | {"heldout_length": 150}, BEST | {"heldout_length": 100}]) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"heldout_kl": 20.1},
            "the policy kept is 20.1 nats per answer from the reference; raise beta, or set max_kl",
        ),
        (
            {"heldout_finished_share": 0.69},
            "31% of its held-out answers are cut off; raise sampling.max_new_tokens",
        ),
        (
            {"heldout_finished_share": 0.5, "heldout_no_room_share": 0.5},
            "50% of its held-out answers end where a context does; leave long prompts out, or name a model of a longer "
            "context",
        ),
        ({"heldout_length": 151}, "its held-out answers went from 100 to 151 tokens"),
        ({"heldout_length": 66}, "its held-out answers went from 100 to 66 tokens"),
    ],
)
def test_a_policy_beyond_one_threshold_is_suspicious(change: dict[str, Any], sentence: str) -> None:
    assert suspicious_run(2, [START, BEST | change]) == [sentence]


def test_a_run_that_kept_its_start_or_was_warned_is_suspicious() -> None:
    assert suspicious_run(0, [START]) == [
        "the policy kept is the one it started from: no evaluation had a better reward. "
        'See "When it gains nothing" of docs/recipes/ppo.md'
    ]
    warned = [START, {"step": 1, "warnings": ["odd"]}, BEST | {"warnings": ["odd", "odder"]}]
    assert suspicious_run(2, warned) == ["odd", "odder"], "each warning once"


def test_a_run_that_kept_its_start_says_why_and_what_to_try() -> None:
    scores = [("reward", [0.21, 0.12, 0.123]), ("helpfulness", [0.27, 0.3, 0.35]), ("safety", [-0.12, -0.1, -0.2])]
    rows = _evaluations(**dict(scores), kl=[0.0, 3.0, 6.0], reward_error=[0.1, 0.08, 0.09])
    metrics = [row | {"step": 6 * i, "explained_variance": [-2.0, -0.8, None][i]} for i, row in enumerate(rows)]
    (said,) = suspicious_run(0, metrics)
    assert "no evaluation had a better reward (0.210 at its start, 0.123 at most later)" in said
    assert "Standard error 0.09: more validation prompts." in said
    assert "Helpfulness +0.080, safety -0.080: one pays for the other" in said
    assert "KL 6.0 nats: a higher ppo.beta" in said
    assert "Explained variance -0.80: more ppo.iterations, or ppo.estimator rloo." in said
    still = [row | {"heldout_kl": 0.1, "heldout_reward_error": 0.01, "heldout_safety": 0.0} for row in metrics]
    (said,) = suspicious_run(0, [row | {"explained_variance": 0.4} for row in still])
    assert "KL 0.1 nats: more ppo.iterations, a higher learning rate or a lower ppo.beta." in said
    assert not any(word in said for word in ("Standard error", "pays", "variance"))
