"""Log-probabilities, KL estimators, GAE and the clipped losses against naive float64 loops and exact enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf.objectives.advantages import cross_moments, gae, grpo, rising_line, rloo
from rlhf.objectives.policy import (
    adapted_beta,
    clipped_policy_loss,
    clipped_share,
    clipped_value_loss,
    entropy,
    kl_k1,
    kl_k2,
    kl_k3,
    token_logprobs,
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.7, 2.5])
@pytest.mark.parametrize("vocabulary", [11, 70_000])  # the second needs several blocks of rows
def test_token_logprobs_and_gradient_are_log_softmax_s(vocabulary: int, temperature: float) -> None:
    logits = random(2, 7, vocabulary).mul(4).requires_grad_()
    ids = torch.randint(0, vocabulary, (2, 7), generator=torch.Generator().manual_seed(1))
    weights = random(2, 7, seed=2)
    ours = token_logprobs(logits, ids, temperature)
    (ours * weights).sum().backward()
    grad, logits.grad = logits.grad, None
    theirs = (logits.double() / temperature).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    (theirs * weights).sum().backward()
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(grad, logits.grad, rtol=1e-5, atol=1e-6 / min(temperature, 1))


def test_at_temperature_1_nothing_is_divided() -> None:
    """Bit for bit chosen logit less logsumexp, and its gradient, as without a temperature."""
    logits, ids = random(4, 6, 50).mul(4).requires_grad_(), torch.arange(24).view(4, 6)
    ours = token_logprobs(logits, ids, temperature=1.0)
    normaliser = logits.detach().logsumexp(-1)
    assert torch.equal(ours, logits.detach().gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normaliser)
    weights = random(4, 6, seed=2)
    (ours * weights).sum().backward()
    expected = (logits.detach() - normaliser.unsqueeze(-1)).exp() * -weights.unsqueeze(-1)
    expected.scatter_add_(-1, ids.unsqueeze(-1), weights.unsqueeze(-1))
    assert torch.equal(logits.grad, expected)


def test_a_temperature_is_transformers_warper_s_and_other_logits() -> None:
    """As trl's GRPO has it too: the logits divided before the softmax."""
    from transformers import TemperatureLogitsWarper

    logits, ids = random(5, 40) * 3, torch.arange(5)
    warped = TemperatureLogitsWarper(0.7)(None, logits)
    torch.testing.assert_close(token_logprobs(logits, ids, 0.7), token_logprobs(warped, ids))
    torch.testing.assert_close(entropy(logits, 0.7), entropy(warped))
    assert (entropy(logits, 0.7) < entropy(logits) - 0.05).all(), "colder is surer"


def test_token_logprobs_gradient_numerically() -> None:
    logits = random(3, 5, dtype=torch.float64).requires_grad_()
    ids = torch.tensor([0, 4, 2])
    (token_logprobs(logits, ids) * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    expected = torch.nn.functional.one_hot(ids, 5) - logits.detach().softmax(-1)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected * torch.tensor([[1.0], [-2.0], [0.5]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_of_bfloat16_are_float32_exact(temperature: float) -> None:
    logits = (random(3, 4, 500) * 5).bfloat16().requires_grad_()
    ids = torch.randint(0, 500, (3, 4), generator=torch.Generator().manual_seed(1))
    ours = token_logprobs(logits, ids, temperature)
    exact = (logits.detach().double() / temperature).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-6)
    ours.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


def test_token_logprobs_keep_one_float_a_token_for_the_backward_pass() -> None:
    """log_softmax would keep a float32 copy of the logits."""
    saved: list[int] = []
    logits, ids = random(2, 8, 100).bfloat16().requires_grad_(), torch.zeros(2, 8, dtype=torch.long)

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != logits.data_ptr():
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(logits, ids, temperature=0.7)
    assert max(saved) <= 16


def test_token_logprobs_of_non_contiguous_and_empty_logits() -> None:
    logits = random(5, 2, 9).transpose(0, 1)
    ids = torch.arange(10).view(2, 5) % 9
    assert not logits.is_contiguous()
    torch.testing.assert_close(token_logprobs(logits, ids), token_logprobs(logits.contiguous(), ids))
    assert token_logprobs(torch.zeros(0, 5, 9), torch.zeros(0, 5, dtype=torch.long)).shape == (0, 5)


def test_token_logprobs_refuse_ids_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"ids \(2, 4\)"):
        token_logprobs(torch.zeros(2, 5, 9), torch.zeros(2, 4, dtype=torch.long))


def test_entropy() -> None:
    assert entropy(torch.zeros(2, 3, 8)).flatten().tolist() == pytest.approx([math.log(8)] * 6)
    assert entropy(torch.tensor([[0.0, -math.inf]])).item() == 0.0
    p = torch.tensor([0.5, 0.25, 0.25])
    assert entropy(p.log()).item() == pytest.approx(1.5 * math.log(2))
    squared = torch.tensor([4 / 6, 1 / 6, 1 / 6])  # temperature 1/2 squares the probabilities
    assert entropy(p.log(), temperature=0.5).item() == pytest.approx(-float((squared * squared.log()).sum()))


def test_expectations_of_the_kl_estimators_by_enumeration() -> None:
    """k1 and k3 are unbiased, k2 is E[(log p/q)^2] / 2; every outcome of a small categorical is enumerated."""
    p = random(6, dtype=torch.float64).softmax(0)
    q = random(6, seed=1, dtype=torch.float64).softmax(0)
    true_kl = (p * (p / q).log()).sum()
    log_p, log_q = p.log(), q.log()
    torch.testing.assert_close((p * kl_k1(log_p, log_q)).sum(), true_kl)
    torch.testing.assert_close((p * kl_k3(log_p, log_q)).sum(), true_kl)
    torch.testing.assert_close((p * kl_k2(log_p, log_q)).sum(), 0.5 * (p * (p / q).log() ** 2).sum())
    assert true_kl > 0.01 and (kl_k1(log_p, log_q) < 0).any()
    assert (kl_k2(log_p, log_q) >= 0).all() and (kl_k3(log_p, log_q) >= 0).all()


def test_kl_estimators_by_hand_and_at_equality() -> None:
    p, q = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert [kl_k1(p, q).item(), kl_k2(p, q).item()] == [0.5, 0.125]
    assert kl_k3(p, q).item() == pytest.approx(math.exp(-0.5) - 1 + 0.5, abs=1e-7)
    for estimator in (kl_k1, kl_k2, kl_k3):
        assert estimator(p, p).item() == 0


def naive_gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}, straight from the definition."""
    steps = len(rewards)
    delta = [rewards[t] + gamma * (values[t + 1] if t + 1 < steps else 0.0) - values[t] for t in range(steps)]
    return np.array([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, steps)) for t in range(steps)])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_definition_whatever_stands_around_it(gamma: float, lam: float) -> None:
    rows, width = 5, 9
    rewards, values = random(rows, width), random(rows, width, seed=1)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    spans = [(0, 9), (0, 4), (3, 9), (2, 5), (8, 9)]
    for row, (start, end) in enumerate(spans):
        mask[row, start:end] = True
    advantages, returns = gae(rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, 1e9), mask, gamma, lam)
    for row, (start, end) in enumerate(spans):
        expected = naive_gae(
            rewards[row, start:end].double().numpy(), values[row, start:end].double().numpy(), gamma, lam
        )
        np.testing.assert_allclose(advantages[row, start:end].numpy(), expected, atol=2e-5)
        np.testing.assert_allclose(
            returns[row, start:end].numpy(), expected + values[row, start:end].numpy(), atol=2e-5
        )
    assert advantages[~mask].abs().sum() == 0 and returns[~mask].abs().sum() == 0


def test_gae_with_gamma_and_lambda_one_is_reward_to_go_less_value() -> None:
    rewards, values = random(3, 6), random(3, 6, seed=1)
    advantages, returns = gae(rewards, values, torch.ones(3, 6, dtype=torch.bool), 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


def test_the_rising_line_is_that_of_least_squares_over_all_parts() -> None:
    """Sums of two parts with junk off the mask, against numpy; one that would fall, and one of x that are all alike."""
    x, mask = random(3, 7), torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    y = 0.5 * x + random(3, 7).flip(0)
    parts = [cross_moments(x[rows].masked_fill(~mask[rows], 9.0), y[rows], mask[rows]) for rows in ([0], [1, 2])]
    slope, intercept = np.polyfit(x[mask].double().numpy(), y[mask].double().numpy(), 1)
    assert slope > 0
    assert rising_line(parts[0] + parts[1]) == pytest.approx((slope, intercept), rel=1e-9)
    mean = float(y[mask].double().mean())
    assert rising_line(cross_moments(-x, y, mask)) == pytest.approx((0.0, mean))
    assert rising_line(cross_moments(torch.full_like(x, 0.3), y, mask)) == pytest.approx((0.0, mean))


def test_gae_carries_no_gradient() -> None:
    values = random(2, 3).requires_grad_()
    advantages, returns = gae(random(2, 3), values, torch.ones(2, 3, dtype=torch.bool))
    assert not advantages.requires_grad and not returns.requires_grad


def test_rloo_is_each_return_less_the_mean_of_the_others() -> None:
    scores, costs = random(3, 4).double(), random(3, 4, seed=1).double()
    ours = rloo(scores, costs)
    returns = (scores - costs).numpy()
    for row in range(3):
        for i in range(4):
            others = [returns[row, j] for j in range(4) if j != i]
            assert ours[row, i].item() == pytest.approx(returns[row, i] - sum(others) / 3, abs=1e-12)
    torch.testing.assert_close(rloo(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)), torch.tensor([[-2.0, 2.0]]))


def test_rloo_is_unbiased_by_enumeration() -> None:
    """Over all pairs of one-token answers the mean of A grad log pi is the gradient of the expected return."""
    logits, paid = random(3, dtype=torch.float64).requires_grad_(), torch.tensor([1.0, -2.0, 0.5]).double()
    logprobs = logits.log_softmax(-1)
    (expected,) = torch.autograd.grad((logprobs.exp() * paid).sum(), logits, retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            advantages = rloo(paid[[a, b]][None], torch.zeros(1, 2).double())[0]
            chance = (logprobs[a] + logprobs[b]).exp().detach()
            surrogate = surrogate + chance * (advantages[0] * logprobs[a] + advantages[1] * logprobs[b]) / 2
    torch.testing.assert_close(torch.autograd.grad(surrogate, logits)[0], expected)


def test_grpo_by_hand() -> None:
    none = torch.zeros(1, 4)
    whitened = torch.tensor([[-1.341641, -0.447214, 0.447214, 1.341641]])
    torch.testing.assert_close(grpo(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), none), whitened)
    costs = torch.tensor([[0.0, 0.0, 0.0, 0.4]])
    torch.testing.assert_close(grpo(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), costs), whitened - costs + 0.1)
    torch.testing.assert_close(grpo(torch.full((1, 4), 7.3), costs), 0.1 - costs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimate", [rloo, grpo])
def test_group_estimators_compare_within_a_prompt(estimate) -> None:  # type: ignore[no-untyped-def]
    """What is added to all of one prompt's scores changes nothing, there or elsewhere."""
    scores, costs = random(2, 5), random(2, 5, seed=1)
    shifted = scores + torch.tensor([[4.0], [0.0]])
    torch.testing.assert_close(estimate(shifted, costs), estimate(scores, costs), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at least 2 answers"):
        estimate(scores[:, :1], costs[:, :1])


def test_beta_moves_towards_the_target() -> None:
    """Ziegler et al.: 10 % of the error, which counts 20 % at most; at the target beta stays."""
    assert adapted_beta(0.5, kl=6.0, target=6.0) == 0.5
    assert adapted_beta(0.5, kl=6.6, target=6.0) == pytest.approx(0.5 * 1.01)
    assert adapted_beta(0.5, kl=60.0, target=6.0) == pytest.approx(0.5 * 1.02)
    assert adapted_beta(0.5, kl=-1.0, target=6.0) == pytest.approx(0.5 * 0.98)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "held"),
    [(1.3, 1, 1.2, 1), (0.7, -1, -0.8, 1), (1.3, -1, -1.3, 0), (0.7, 1, 0.7, 0), (1.1, 1, 1.1, 0), (1.0, -1, -1.0, 0)],
)
def test_clipped_objective_and_where_its_gradient_ends(
    ratio: float, advantage: float, objective: float, held: int
) -> None:
    old = torch.tensor([[-2.0]], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_()
    advantages = torch.tensor([[float(advantage)]], dtype=torch.float64)
    loss = clipped_policy_loss(logprobs, old, advantages, clip=0.2)
    assert -loss.item() == pytest.approx(objective)
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(0.0 if held else -ratio * advantage)
    assert clipped_share(logprobs, old, advantages, clip=0.2).item() == held


def test_first_minibatch_is_the_plain_policy_gradient() -> None:
    old, advantages = random(3, 4), random(3, 4, seed=1)
    logprobs = old.clone().requires_grad_()
    loss = clipped_policy_loss(logprobs, old, advantages)
    assert torch.equal(loss, -advantages)  # ratio 1
    loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.0, 1.0, 2.0, 0.5),  # no move: (1-2)^2/2
        (1.5, 1.0, 2.0, 0.32),  # moved too far towards the target: held at 1.2, (1.2-2)^2/2
        (0.5, 1.0, 2.0, 1.125),  # moved away: the true, larger error, (0.5-2)^2/2
        (1.1, 1.0, 2.0, 0.405),  # within the clip
    ],
)
def test_clipped_value_loss_by_hand(value: float, old: float, target: float, loss: float) -> None:
    one = [torch.tensor([[x]]) for x in (value, old, target)]
    assert clipped_value_loss(*one, clip=0.2).item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: kl_k1(a, b),
        lambda a, b: kl_k3(a, b),
        lambda a, b: gae(a, a, b),
        lambda a, b: rloo(a, b),
        lambda a, b: grpo(a, b),
        lambda a, b: clipped_policy_loss(a, a, b),
        lambda a, b: clipped_share(a, b, a),
        lambda a, b: clipped_value_loss(a, b, a),
    ],
)
def test_broadcastable_shapes_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"shapes must be the same, got .*\(4, 1\)"):
        call(torch.zeros(4, 4), torch.zeros(4, 1))
