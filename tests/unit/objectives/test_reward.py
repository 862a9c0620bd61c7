"""Gate, whitening and token rewards: the recipe's figures, edges, and what must change nothing."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.objectives.reward import (
    SAFETY_THRESHOLD,
    SAFETY_THRESHOLD_LOGIT,
    gate,
    missing_end_penalty,
    moments,
    neutral_unfinished,
    token_rewards,
    whiten,
)

UNTAGGED = torch.tensor([False])


def test_threshold_on_raw_scores() -> None:
    assert SAFETY_THRESHOLD == 0.15
    assert pytest.approx(-1.734601, abs=1e-6) == SAFETY_THRESHOLD_LOGIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_at_the_edge_is_strict(dtype: torch.dtype) -> None:
    safety = torch.logit(torch.tensor([0.1499, 0.15], dtype=dtype))
    helpfulness = torch.tensor([7.0, 8.0], dtype=dtype)
    rewards, used_safety = gate(helpfulness, safety, torch.tensor([False, False]))
    assert used_safety.tolist() == [True, False]
    assert rewards.tolist() == [safety[0].item(), 8.0]


def test_gate_at_the_exact_raw_threshold() -> None:
    for dtype in (torch.float32, torch.float64):
        at = torch.tensor([SAFETY_THRESHOLD_LOGIT], dtype=dtype)
        below = torch.nextafter(at, torch.tensor([-math.inf], dtype=dtype))
        assert not gate(torch.zeros(1, dtype=dtype), at, UNTAGGED)[1].item()
        assert gate(torch.zeros(1, dtype=dtype), below, UNTAGGED)[1].item()


def test_tagged_prompts_always_use_the_safety_score() -> None:
    safety = torch.tensor([-9.0, -1.0, 0.0, 9.0])
    rewards, used_safety = gate(torch.full((4,), 3.0), safety, torch.ones(4, dtype=torch.bool))
    assert used_safety.all() and torch.equal(rewards, safety)


def test_gate_agrees_with_the_paper_s_sigmoid_form() -> None:
    generator = torch.Generator().manual_seed(0)
    helpfulness, safety = torch.randn(2, 500, generator=generator, dtype=torch.float64) * 3
    tagged = torch.rand(500, generator=generator) < 0.3
    probability = torch.sigmoid(safety)
    combined = torch.where(tagged | (probability < 0.15), probability, torch.sigmoid(helpfulness))
    torch.testing.assert_close(gate(helpfulness, safety, tagged)[0], torch.logit(combined))


def test_scores_are_never_clamped() -> None:
    """logit(sigmoid(60)) is infinite in floating point; the raw score goes through as it is."""
    assert torch.logit(torch.sigmoid(torch.tensor(60.0))).isinf()
    rewards, _ = gate(torch.tensor([60.0, 60.0]), torch.tensor([60.0, -60.0]), torch.tensor([False, False]))
    assert rewards.tolist() == [60.0, -60.0]
    assert whiten(rewards).tolist() == [1.0, -1.0]


def test_gate_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"helpfulness \(3, 1\), safety \(3,\)"):
        gate(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3, dtype=torch.bool))


def test_whiten_is_biased() -> None:
    white = whiten(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert white.tolist() == pytest.approx([-1.341641, -0.447214, 0.447214, 1.341641], abs=1e-6)
    kept = whiten(torch.tensor([1.0, 2.0, 3.0, 4.0]), shift_mean=False)
    assert kept.tolist() == pytest.approx([1.158359, 2.052786, 2.947214, 3.841641], abs=1e-6)


def test_whiten_constant_is_zero() -> None:
    assert whiten(torch.full((5,), 3.7)).tolist() == pytest.approx([0.0] * 5, abs=1e-6)


def test_whiten_looks_at_the_mask_only() -> None:
    x = torch.tensor([[1.0, 2.0, math.nan], [3.0, 4.0, math.inf]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    white = whiten(x, mask)
    torch.testing.assert_close(white[mask], whiten(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    assert white[~mask].tolist() == [0.0, 0.0]


def test_whiten_over_global_sums_is_whiten_over_the_concatenation() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=generator) * 3 + 100
    mask = torch.rand(7, 5, generator=generator) < 0.7
    whole = whiten(x, mask)
    sums = moments(x[:3], mask[:3]) + moments(x[3:], mask[3:])
    parts = torch.cat([whiten(x[:3], mask[:3], sums=sums), whiten(x[3:], mask[3:], sums=sums)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert not torch.allclose(whiten(x[:3], mask[:3]), whole[:3], atol=1e-2)


def test_whiten_is_exact_far_from_zero() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) + 1e4
    assert whiten(x).tolist() == pytest.approx([-1.341641, -0.447214, 0.447214, 1.341641], abs=1e-6)


def test_missing_end_costs_the_penalty() -> None:
    scores = missing_end_penalty(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), 0.5)
    assert scores.tolist() == [1.0, 1.5]


def test_an_unfinished_answer_is_taken_to_be_as_good_as_the_finished_ones() -> None:
    """To its own prompt; to a prompt without any, as all finished ones; where nothing is finished, none is better."""
    rewards = torch.tensor([1.0, 3.0, 9.0, -5.0, 5.0, 7.0, 8.0])
    finished = torch.tensor([True, True, False, False, True, False, False])
    prompts = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    found = neutral_unfinished(rewards, finished, prompts)
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 3.0, 3.0]))
    assert neutral_unfinished(rewards, torch.zeros(7, dtype=torch.bool), prompts).tolist() == [0.0] * 7
    with pytest.raises(ValueError, match="prompts"):
        neutral_unfinished(rewards, finished, prompts[:3])


def test_token_rewards_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, math.nan]])
    reference = torch.tensor([[-1.5, -1.0, -3.0], [-2.0, -0.5, -math.inf]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rewards = token_rewards(logprobs, reference, mask, torch.tensor([10.0, -4.0]), beta=0.1)
    expected = torch.tensor([[-0.05, 0.1, 10.0], [-0.1, -4.0 + 0.05, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_token_rewards_sum_to_the_paper_s_reward() -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs, reference = -torch.rand(2, 6, 9, generator=generator, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([1, 3, 5, 9, 9, 2]).unsqueeze(1)
    scores = torch.randn(6, generator=generator, dtype=torch.float64)
    total = scores - 0.01 * ((logprobs - reference) * mask).sum(1)
    torch.testing.assert_close(token_rewards(logprobs, reference, mask, scores, 0.01).sum(1), total)


@pytest.mark.parametrize("left", [0, 3])
def test_padding_changes_no_token_reward(left: int) -> None:
    logprobs, reference = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(4, 5, dtype=torch.bool)
    scores = torch.arange(4.0)

    def padded(x: torch.Tensor, value: float) -> torch.Tensor:
        return torch.nn.functional.pad(x, (left, 2), value=value)

    wide_mask = torch.nn.functional.pad(mask, (left, 2), value=False)
    wide = token_rewards(padded(logprobs, 9.0), padded(reference, -9.0), wide_mask, scores, 0.3)
    assert torch.equal(wide[:, left : left + 5], token_rewards(logprobs, reference, mask, scores, 0.3))
    assert wide[:, :left].abs().sum() == 0 and wide[:, left + 5 :].abs().sum() == 0


def test_token_rewards_refuse_an_empty_answer_and_other_shapes() -> None:
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="at least one answer token"):
        token_rewards(zeros, zeros, torch.tensor([[True, True, False], [False] * 3]), torch.zeros(2), 0.1)
    with pytest.raises(ValueError, match=r"scores \(2, 1\)"):
        token_rewards(zeros, zeros, zeros == 0, torch.zeros(2, 1), 0.1)
    with pytest.raises(ValueError, match=r"ref_logprobs \(2, 1\)"):
        token_rewards(zeros, torch.zeros(2, 1), zeros == 0, torch.zeros(2), 0.1)
