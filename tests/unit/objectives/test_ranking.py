"""Ranking and safety losses against the recipe's figures, trl's formula and hand values."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from rlhf.errors import InputError
from rlhf.objectives.margins import MARGINS
from rlhf.objectives.ranking import centering_penalty, margins_of, ranking_loss, safety_loss

STRENGTHS = ["significantly", "better", "slightly", "negligibly", None]


@pytest.mark.parametrize(
    ("margin", "loss"),
    [(0, 0.693147), (1 / 3, 0.873639), (2 / 3, 1.081037), (1, 1.313262), (2, 2.126928), (3, 3.048587)],
)
def test_loss_and_gradient_at_equal_scores(margin: float, loss: float) -> None:
    chosen = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    value = ranking_loss(chosen, rejected, torch.tensor([margin], dtype=torch.float64))
    assert value.item() == pytest.approx(loss, abs=1e-6)
    value.sum().backward()
    slope = torch.sigmoid(torch.tensor(float(margin))).item()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-slope, abs=1e-6)
    assert rejected.grad is not None and rejected.grad.item() == pytest.approx(slope, abs=1e-6)


def test_margins_of_the_paper() -> None:
    assert margins_of(STRENGTHS, "small").tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])
    assert margins_of(STRENGTHS, "large").tolist() == [3, 2, 1, 0, 0]
    assert margins_of(STRENGTHS, "none").tolist() == [0, 0, 0, 0, 0]
    assert margins_of([], "small").shape == (0,)
    assert {frozenset(table) for table in MARGINS.values()} == {frozenset(STRENGTHS[:4])}


def test_unknown_table_and_strength_are_refused() -> None:
    with pytest.raises(InputError, match=r"one of none, small, large or a figure for each strength, got 'huge'"):
        margins_of(["better"], "huge")
    with pytest.raises(InputError, match=r"strength: .* got 'much'"):
        margins_of(["better", "much"], "small")


def test_a_margin_table_of_ones_own() -> None:
    own = {"significantly": 2.0, "better": 1, "slightly": 0.5, "negligibly": 0.0}
    assert margins_of(STRENGTHS, own).tolist() == [2.0, 1.0, 0.5, 0.0, 0.0]
    assert margins_of([None, "better", None], own).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": None}, "lacks a figure for 'better'"),
        ({"much": 1.0}, "'much' is no strength; they are significantly, better, slightly, negligibly"),
        ({"slightly": -0.5}, "of 'slightly' must be 0 or above, got -0.5"),
        ({"slightly": float("nan")}, "of 'slightly' must be 0 or above, got nan"),
    ],
)
def test_a_bad_margin_table_gets_one_sentence(change: dict[str, float | None], message: str) -> None:
    table = {"significantly": 2.0, "better": 1.0, "slightly": 0.5, "negligibly": 0.0} | change
    with pytest.raises(InputError, match=f"^margin: .*{message}"):
        margins_of(["better"], {strength: m for strength, m in table.items() if m is not None})


def test_centering_penalty_by_hand() -> None:
    chosen = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    penalty = centering_penalty(chosen, torch.tensor([0.5, 2.0, 0.5], dtype=torch.bfloat16))
    assert penalty.tolist() == [2.25, 0.0, 1.0] and penalty.dtype == torch.float32
    penalty.sum().backward()
    assert chosen.grad is not None and chosen.grad.tolist() == [3.0, 0.0, 2.0]  # 2 (r_c + r_r)
    with pytest.raises(ValueError, match="shapes must be the same"):
        centering_penalty(torch.zeros(3, 1), torch.zeros(3))


def test_same_as_trl() -> None:
    """trl 1.16 RewardTrainer: -logsigmoid(r_c - r_r - margin).mean()."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 64, generator=generator) * 5
    margin = margins_of([STRENGTHS[i % 5] for i in range(64)], "large")
    trl = -logsigmoid(chosen - rejected - margin).mean()
    torch.testing.assert_close(ranking_loss(chosen, rejected, margin).mean(), trl, rtol=0, atol=0)


def test_no_margin_is_margin_zero() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    assert torch.equal(ranking_loss(chosen, rejected), ranking_loss(chosen, rejected, torch.zeros(2)))


def test_far_apart_scores_stay_finite_and_linear() -> None:
    losses = ranking_loss(torch.tensor([-500.0, 500.0]), torch.tensor([500.0, -500.0]), torch.ones(2))
    assert losses.tolist() == [1001.0, 0.0]


def test_half_precision_scores_give_float32_losses() -> None:
    loss = ranking_loss(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.5], dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-logsigmoid(torch.tensor(0.5)).item())


def test_column_against_row_is_refused() -> None:
    column, row = torch.zeros(4, 1), torch.zeros(4)
    with pytest.raises(ValueError, match=r"shapes must be the same, got chosen \(4, 1\), rejected \(4,\)"):
        ranking_loss(column, row)
    with pytest.raises(ValueError, match=r"margin \(4, 1\)"):
        ranking_loss(row, row, column)
    with pytest.raises(ValueError, match=r"labels \(4, 1\)"):
        safety_loss(row, column)
    with pytest.raises(ValueError, match=r"mask \(4, 1\)"):
        safety_loss(row, row, column.bool())


def test_safety_loss_by_hand() -> None:
    logits = torch.tensor([2.0, 2.0, -1.0, 0.0])
    losses = safety_loss(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    expected = [0.126928, 2.126928, 0.313262, 0.693147]  # softplus(-2), softplus(2), softplus(-1), log 2
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_unlabelled_answers_add_no_loss_and_no_gradient() -> None:
    logits = torch.tensor([0.3, 5.0], requires_grad=True)
    losses = safety_loss(logits, torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
    assert losses[1].item() == 0
    losses.sum().backward()
    assert logits.grad is not None and logits.grad[1].item() == 0 and logits.grad[0].item() < 0
