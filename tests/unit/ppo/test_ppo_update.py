"""The update against an independent float64 computation in plain numpy, and what must not matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from host_looks import HostLooks
from torch import Tensor, nn

from rlhf.models.packing import enable_packing
from rlhf.models.policy import load_policy
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.experience import (
    Minibatch,
    add_advantages,
    add_baselines,
    add_experience,
    add_logprobs,
    collate,
    held_out_rewards,
    make_minibatches,
    whitened_scores,
)
from rlhf.ppo.model import PolicyAndValue, answer_logprobs, answer_values, pack_batch
from rlhf.ppo.rollout import Rollout
from rlhf.ppo.update import ppo_loss, update
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Batch, Stepper

CONFIG = PPOConfig(
    batch_size=12,
    optimizer=OptimizerConfig(
        learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, batch_size=5, micro_batch_size=2
    ),
    beta=0.3,
    gamma=0.97,
    lam=0.9,
    missing_end_penalty=0.7,
    clip_range=0.2,
    value_clip_range=0.15,
    value_coefficient=0.4,
)


def _rollouts(count: int = 12, seed: int = 0) -> list[Rollout]:
    rng = np.random.default_rng(seed)
    rollouts = []
    for i in range(count):
        prompt = (0, *(int(t) for t in rng.integers(3, 300, size=rng.integers(2, 9))))
        answer = tuple(int(t) for t in rng.integers(0, 300, size=rng.integers(1, 8)))
        reward = float(rng.normal())
        rollouts.append(Rollout(prompt, answer, i % 3 != 0, reward, 0.0, reward, False))
    return rollouts


@pytest.fixture()
def accelerator() -> Accelerator:
    return make_accelerator(seed=0)


@pytest.fixture()
def actor(tiny_policy_path: Path) -> PolicyAndValue:
    return PolicyAndValue(
        load_policy(tiny_policy_path), RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=1)
    )


def _logprobs_of(model: nn.Module, temperature: float = 1.0) -> Callable[[Batch], Tensor]:
    enable_packing(model)
    return lambda batch: answer_logprobs(model, batch, batch["packed"], temperature=temperature)[0]


@pytest.fixture()
def reference(tiny_policy_path: Path) -> nn.Module:
    """Not the policy itself, so that the KL is not 0."""
    model = load_policy(tiny_policy_path)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


# --- the oracle: one row at a time, no padding, numpy float64 from the models' own float64 outputs ---


def _row_outputs(actor: PolicyAndValue, reference: nn.Module, rollout: Rollout) -> dict[str, np.ndarray]:
    """Of the distributions at the actor's temperature."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.answer_ids]])
    start, length = len(rollout.prompt_ids), len(rollout.answer_ids)
    out = {}
    with torch.no_grad():
        for name, model in (("new", actor.policy), ("ref", reference)):
            logits = model(input_ids=ids).logits[0].numpy().astype(np.float64) / actor.temperature
            top = logits.max(-1, keepdims=True)
            logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
            out[name] = np.array([logprobs[start - 1 + t, rollout.answer_ids[t]] for t in range(length)])
            if name == "new":
                out["entropy"] = -(np.exp(logprobs) * logprobs).sum(-1)[start - 1 : start - 1 + length]
        states = actor.value.model.model(input_ids=ids).last_hidden_state
        out["value"] = actor.value.model.score(states)[0, start - 1 : start - 1 + length, 0].numpy().astype(np.float64)
    return out


def _expected_experience(
    rollouts: list[Rollout], actor: PolicyAndValue, reference: nn.Module, config: PPOConfig
) -> list[dict[str, np.ndarray]]:
    rewards = np.array([r.reward for r in rollouts])
    scores = (rewards - rewards.mean()) / np.sqrt(rewards.var() + 1e-8)
    scores = scores - config.missing_end_penalty * np.array([not r.finished for r in rollouts])
    rows = []
    for rollout, score in zip(rollouts, scores, strict=True):
        row = _row_outputs(actor, reference, rollout)
        reward = -config.beta * (row["new"] - row["ref"])
        reward[-1] += score
        values = np.append(row["value"], 0.0)
        advantage, running = np.zeros(len(reward)), 0.0
        for t in reversed(range(len(reward))):
            running = reward[t] + config.gamma * values[t + 1] - values[t] + config.gamma * config.lam * running
            advantage[t] = running
        row["advantage"], row["return"] = advantage, advantage + row["value"]
        rows.append(row)
    every = np.concatenate([row["advantage"] for row in rows])
    for row in rows:
        row["white"] = (row["advantage"] - every.mean()) / np.sqrt(every.var() + 1e-8)
    return rows


def _by_rollout(minibatches: list[Minibatch], rollouts: list[Rollout], name: str) -> list[np.ndarray]:
    """A batch tensor's answer part for each rollout, found again by its ids."""
    found: dict[tuple[int, ...], np.ndarray] = {}
    for minibatch in minibatches:
        for batch, share in minibatch.batches:
            for row in range(len(batch["mask"]) if share else 0):
                ids = tuple(batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist())
                found[ids] = batch[name][row][batch["mask"][row]].double().numpy()
    return [found[(*r.prompt_ids, *r.answer_ids)] for r in rollouts]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("packs", [True, False])
def test_experience_equals_the_float64_reference(
    actor: PolicyAndValue, reference: nn.Module, accelerator: Accelerator, packs: bool, temperature: float
) -> None:
    assert actor.policy_packs
    actor.policy_packs, actor.temperature = packs, temperature
    rollouts = _rollouts()
    minibatches = make_minibatches(rollouts, CONFIG, accelerator, pad_id=2, seed=0)
    figures = add_experience(minibatches, actor, _logprobs_of(reference, temperature), CONFIG, accelerator)
    expected = _expected_experience(rollouts, actor, reference, CONFIG)
    names = {"old_logprobs": "new", "old_values": "value", "returns": "return", "advantages": "white"}
    for name, key in names.items():
        for ours, row in zip(_by_rollout(minibatches, rollouts, name), expected, strict=True):
            np.testing.assert_allclose(ours, row[key], rtol=2e-6, atol=2e-6, err_msg=name)
    k1 = [(row["new"] - row["ref"]).sum() for row in expected]
    k3 = [(np.exp(row["ref"] - row["new"]) - 1 - (row["ref"] - row["new"])).sum() for row in expected]
    returns, values = (np.concatenate([row[key] for row in expected]) for key in ("return", "value"))
    assert figures["kl"] == pytest.approx(np.mean(k1), abs=2e-6)
    assert figures["kl_k3"] == pytest.approx(np.mean(k3), abs=2e-6)
    assert figures["entropy"] == pytest.approx(np.concatenate([r["entropy"] for r in expected]).mean(), rel=1e-6)
    assert figures["explained_variance"] == pytest.approx(1 - (returns - values).var() / returns.var(), abs=2e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_baselines_are_on_numpy_s_line_from_values_to_returns_in_whatever_units(
    actor: PolicyAndValue, reference: nn.Module, accelerator: Accelerator, sign: int
) -> None:
    """In one of the two signs the line would fall, and is flat."""
    rollouts = _rollouts()
    rows = _expected_experience(rollouts, actor, reference, CONFIG)
    returns = []
    for row, score in zip(rows, whitened_scores(rollouts, CONFIG).tolist(), strict=True):
        rewards = -CONFIG.beta * (row["new"] - row["ref"])
        rewards[-1] += score
        returns.append([sum(CONFIG.gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))])
    values, targets = sign * np.concatenate([row["value"] for row in rows]), np.concatenate(returns)
    slope, intercept = np.polyfit(values, targets, 1)
    expected = slope * values + intercept if slope > 0 else np.full_like(values, targets.mean())
    for scale, shift in ((1.0, 0.0), (100.0, 7.0)):
        minibatches = make_minibatches(rollouts, CONFIG, accelerator, pad_id=2, seed=0)
        add_logprobs(minibatches, actor, _logprobs_of(reference), accelerator)
        for batch, _ in (pair for minibatch in minibatches for pair in minibatch.batches):
            batch["old_values"] = (sign * scale * batch["old_values"] + shift) * batch["mask"]
        assert (add_baselines(minibatches, CONFIG, accelerator, CONFIG.beta)[0] > 0) == (slope > 0)
        found = np.concatenate(_by_rollout(minibatches, rollouts, "baselines"))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        figures = add_advantages(minibatches, replace(CONFIG, lam=1.0), accelerator, CONFIG.beta)
        assert figures["explained_variance"] == pytest.approx(1 - (targets - expected).var() / targets.var(), abs=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_losses_equal_the_float64_reference(
    actor: PolicyAndValue, reference: nn.Module, accelerator: Accelerator, temperature: float
) -> None:
    """After policy and value have moved, so that both clips bite."""
    rollouts, actor.temperature = _rollouts(), temperature
    minibatches = make_minibatches(rollouts, replace(CONFIG, batch_size=12), accelerator, pad_id=2, seed=0)
    add_experience(minibatches, actor, _logprobs_of(reference, temperature), CONFIG, accelerator)
    old = _expected_experience(rollouts, actor, reference, CONFIG)
    torch.manual_seed(7)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.03 * torch.randn_like(p))
    new = [_row_outputs(actor, reference, r) for r in rollouts]
    loss = ppo_loss(CONFIG)
    sums: dict[str, float] = {"loss": 0.0}
    for minibatch in minibatches:
        for batch, share in minibatch.batches:
            value, figures = loss(actor, batch)
            for name, figure in {"loss": value, **figures}.items():
                sums[name] = sums.get(name, 0.0) + share * figure.item()
    policy = value_loss = clipped = ratios = 0.0
    for before, after in zip(old, new, strict=True):
        ratio, advantage = np.exp(after["new"] - before["new"]), before["white"]
        policy += -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage).sum()
        clipped += (((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))).sum()
        held = before["value"] + np.clip(after["value"] - before["value"], -0.15, 0.15)
        value_loss += 0.5 * np.maximum((after["value"] - before["return"]) ** 2, (held - before["return"]) ** 2).sum()
        ratios += ratio.sum()
    assert clipped > 3
    assert sums["clip_fraction"] == clipped
    assert sums["policy_loss"] == pytest.approx(policy, abs=1e-4, rel=1e-5)
    assert sums["value_loss"] == pytest.approx(value_loss, rel=1e-5)
    assert sums["ratio"] == pytest.approx(ratios, rel=1e-5)
    assert sums["loss"] == pytest.approx(policy + 0.4 * value_loss, abs=1e-4, rel=1e-5)
    assert sum(m.tokens for m in minibatches) == sum(len(r.answer_ids) for r in rollouts)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.9])
def test_ratio_is_exactly_one_and_kl_zero_at_the_start(
    actor: PolicyAndValue, tiny_policy_path: Path, accelerator: Accelerator, temperature: float
) -> None:
    """Bit for bit: the old log-probabilities come from the batches that the first minibatch runs again."""
    minibatches = make_minibatches(_rollouts(), CONFIG, accelerator, pad_id=2, seed=0)
    actor.temperature = temperature
    stepper = Stepper(actor, CONFIG.optimizer, accelerator)
    reference = _logprobs_of(load_policy(tiny_policy_path), temperature)
    figures = add_experience(minibatches, stepper.model, reference, CONFIG, accelerator)
    assert figures["kl"] == figures["kl_k3"] == 0.0
    for batch, _ in minibatches[0].batches:
        logprobs, _, _ = stepper.model(batch)
        assert torch.equal(logprobs, batch["old_logprobs"])
    steps = update(stepper, minibatches, CONFIG, lambda step: 1e-2)
    assert steps["first_ratio"] == pytest.approx(1.0, abs=1e-6)
    logprobs, _, _ = stepper.model(minibatches[0].batches[0][0])
    assert not torch.equal(logprobs, minibatches[0].batches[0][0]["old_logprobs"])


def test_padding_changes_nothing(actor: PolicyAndValue, reference: nn.Module) -> None:
    """Ten more columns of padding, of any id, and other rows in the batch: the same numbers on the answer."""
    rollouts = _rollouts(3)
    alone = collate(rollouts[:1], [0.0], pad_id=2)
    among = collate(rollouts, [0.0] * 3, pad_id=2)
    padded = dict(among)
    padded["input_ids"] = torch.cat([among["input_ids"], torch.full((3, 10), 77)], dim=1)
    padded["attention_mask"] = torch.cat([among["attention_mask"], torch.zeros(3, 10, dtype=torch.long)], dim=1)
    length = len(rollouts[0].answer_ids)
    padded["packed"] = pack_batch(padded)
    with torch.no_grad():
        expected = actor(alone, with_entropy=True)
        for batch in (among, padded):
            for ours, want in zip(actor(batch, with_entropy=True), expected, strict=True):
                torch.testing.assert_close(ours[0, :length], want[0], rtol=1e-5, atol=1e-6)
                assert not ours[0, length:].any()


def test_packed_rows_give_the_padded_rows_losses_and_gradients(actor: PolicyAndValue) -> None:
    """Three answers to each of two prompts and one to a third."""
    two = _rollouts(2)
    answers = [two[0].answer_ids, two[1].answer_ids[:3], (7, 8, 9)]
    rollouts = [replace(r, answer_ids=ids) for r in two for ids in answers] + _rollouts(3)[2:]
    batch = collate(rollouts, [0.0] * 7, pad_id=2)
    assert batch["groups"].tolist() == [0, 0, 0, 1, 1, 1, 2]
    results = []
    for packs in (True, False):
        actor.policy_packs = packs
        logprobs, values, spread = actor(batch, with_entropy=True)
        actor.zero_grad()
        (logprobs.square().sum() + values.square().sum()).backward()
        found = {name: p.grad.clone() for name, p in actor.named_parameters() if p.grad is not None}
        results.append({"logprobs": logprobs, "values": values, "entropy": spread, **found})
    assert results[0].keys() == results[1].keys() and len(results[0]) > 20
    for name, packed in results[0].items():
        torch.testing.assert_close(packed, results[1][name], rtol=1e-5, atol=1e-5, msg=name)


def test_the_host_waits_for_no_number_of_a_packed_batch(actor: PolicyAndValue) -> None:
    """Nor in the backward pass; the batch is of an update, or of the answers' scoring."""
    batch = collate(_rollouts(3), [0.0] * 3, pad_id=2)
    with torch.no_grad(), HostLooks() as looks:
        logprobs, values, _ = actor(batch, with_entropy=True)
    for name in ("advantages", "returns", "old_values"):
        batch[name] = torch.ones_like(values) * batch["mask"]
    batch["old_logprobs"] = logprobs
    with looks:
        ppo_loss(CONFIG)(actor, batch)[0].backward()
    assert looks.found == []


def test_advantages_look_once_at_a_batch(accelerator: Accelerator) -> None:
    """Whether each of its answers has a token; not at each number."""
    minibatches = make_minibatches(_rollouts(), CONFIG, accelerator, pad_id=2, seed=0)
    batches = [batch for minibatch in minibatches for batch, _ in minibatch.batches]
    for batch in batches:
        batch |= {name: batch["mask"].float() for name in ("old_logprobs", "ref_logprobs", "old_values")}
    with HostLooks() as looks:
        add_advantages(minibatches, CONFIG, accelerator, beta=0.1)
    assert len(looks.found) == len(batches)


def test_the_last_layers_compute_the_tokens_before_answer_tokens_alone(actor: PolicyAndValue) -> None:
    """Two answers to one prompt: its last token is before the first token of both, and computed once."""
    first = Rollout((0, 5, 6, 7, 8, 9), (11, 12, 13), True, 0.0, 0.0, 0.0, False)
    batch = collate([first, replace(first, answer_ids=(14, 15))], [0.0] * 2, pad_id=2)
    seen: list[int] = []
    layers = [actor.policy.model.layers, actor.value.model.base_model.layers]
    for layer in [part for model in layers for part in (model[0], model[-1])]:
        layer.mlp.gate_proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    actor(batch)
    assert seen == [6 + 2 + 1, 1 + 2 + 1] * 2, "no answer's last token, which predicts none"


def test_micro_batches_change_nothing(actor: PolicyAndValue, reference: nn.Module, accelerator: Accelerator) -> None:
    """Nor does gradient checkpointing."""
    results = []
    for size, checkpointing in ((1, False), (2, False), (5, False), (2, True)):
        optimizer = replace(CONFIG.optimizer, micro_batch_size=size, gradient_checkpointing=checkpointing)
        config = replace(CONFIG, optimizer=optimizer)
        model = copy.deepcopy(actor)
        stepper = Stepper(model, config.optimizer, accelerator)
        minibatches = make_minibatches(_rollouts(), config, accelerator, pad_id=2, seed=0)
        figures: dict[str, Any] = add_experience(minibatches, model, _logprobs_of(reference), config, accelerator)
        figures |= update(stepper, minibatches, config, lambda step: 1e-2)
        results.append(figures)
    for other in results[1:]:
        for name, value in results[0].items():
            assert other[name] == pytest.approx(value, rel=2e-5, abs=2e-6), name


def test_scores_are_whitened_over_all_and_the_missing_end_costs() -> None:
    """whiten([1, 2, 3, 4]); the third answer has no end token."""
    rollouts = [replace(r, reward=x, finished=x != 3) for r, x in zip(_rollouts(4), (1.0, 2.0, 3.0, 4.0), strict=True)]
    scores = whitened_scores(rollouts, replace(CONFIG, missing_end_penalty=0.5)).tolist()
    assert scores == pytest.approx([-1.341641, -0.447214, 0.447214 - 0.5, 1.341641], abs=1e-6)


def test_held_out_a_neutral_answer_counts_as_the_finished_less_the_penalty() -> None:
    """So a policy that comes to its end more often is better, whatever is said of what breaks off."""
    values, ends = (0.5, 1.5, 4.0, -2.0), (True, True, False, False)
    answers = [replace(r, reward=x, finished=end) for r, x, end in zip(_rollouts(4), values, ends, strict=True)]
    neutral = replace(CONFIG, missing_end_penalty=0.5, unfinished_score="neutral")
    assert held_out_rewards(answers, neutral) == pytest.approx([0.5, 1.5, 1.0 - 0.5 * 0.5, 1.0 - 0.5 * 0.5])
    assert held_out_rewards(answers, replace(neutral, unfinished_score="own")) == list(values)
    spread = np.std([1.5, 4.0, -2.0])
    assert held_out_rewards(answers[1:], neutral) == pytest.approx([1.5, 1.5 - 0.5 * spread, 1.5 - 0.5 * spread])
    assert held_out_rewards(answers[2:], neutral) == [4.0, -2.0], "none is finished"


def test_a_neutral_score_keeps_what_an_unfinished_answer_scored_out_of_the_update() -> None:
    """Two answers a prompt. The first prompt's other answer, and the third's, where none ends, all finished ones."""
    prompts = [rollout.prompt_ids for rollout in _rollouts(3)]
    ends = [True, False, True, True, False, False]
    neutral = replace(CONFIG, missing_end_penalty=0.5, unfinished_score="neutral")
    for cut_scores in ((9.0, 9.0, -9.0), (0.0, 1.0, 2.0)):
        rewards = [1.0, cut_scores[0], 2.0, 6.0, *cut_scores[1:]]
        rollouts = [
            replace(r, prompt_ids=prompts[i // 2], reward=x, finished=end)
            for i, (r, x, end) in enumerate(zip(_rollouts(6), rewards, ends, strict=True))
        ]
        expected = np.array([1.0, 1.0, 2.0, 6.0, 3.0, 3.0])
        white = (expected - expected.mean()) / expected.std() - 0.5 * ~np.array(ends)
        assert whitened_scores(rollouts, neutral).tolist() == pytest.approx(white.tolist(), abs=1e-6)
    nobody = [replace(rollout, finished=False) for rollout in rollouts]
    assert whitened_scores(nobody, neutral).tolist() == [-0.5] * 6, "with nothing to compare by, none is better"


def test_dropout_is_off(tiny_policy_path: Path) -> None:
    policy = load_policy(tiny_policy_path)
    for layer in policy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy.add_module("extra", nn.Dropout(0.5))
    actor = PolicyAndValue(policy, RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0)).train()
    batch = collate(_rollouts(2), [0.0, 0.0], pad_id=2)
    first, second = (answer_logprobs(actor.policy, batch, temperature=1.0)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert policy.extra.p == 0.0
    assert not any(p.requires_grad for p in actor.value.safety_head.parameters())


def test_values_are_read_before_each_token(actor: PolicyAndValue) -> None:
    """Changing an answer token changes no value up to and including its own, and every value after it."""
    one = _rollouts(1)[0]
    one = replace(one, answer_ids=(10, 11, 12, 13))
    other = replace(one, answer_ids=(10, 11, 99, 13))
    with torch.no_grad():
        a, b = (answer_values(actor.value, collate([r], [0.0], pad_id=2))[0] for r in (one, other))
    torch.testing.assert_close(a[:3], b[:3])
    assert (a[3] - b[3]).abs() > 1e-5
