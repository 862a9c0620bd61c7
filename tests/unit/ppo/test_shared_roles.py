"""Adapters on one base are what separate models with merged weights are: numbers, gradients, checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.models.checkpoint.folder import weight_shapes
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.experience import Minibatch, add_experience, make_minibatches
from rlhf.ppo.roles import SeparateRoles
from rlhf.ppo.rollout import Rollout
from rlhf.ppo.shared import POLICY, VALUE, SharedRoles
from rlhf.ppo.update import ppo_loss, update
from rlhf.rewards.loading import load_reward
from rlhf.rewards.suspicion import suspicious_scoring
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

ADAPTER = AdapterConfig(r=4, alpha=8.0, dropout=0.1)
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, batch_size=5, micro_batch_size=3
)
CONFIG = PPOConfig(batch_size=9, optimizer=OPTIMIZER, beta=0.3, value_coefficient=0.4)
TALKS: list[Conversation] = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question in ("what is the river of velda?", "hello")
    for answer in ("the river of velda is mora.", "sure", "I cannot help with that")
]


def _stir(model: nn.Module, seed: int) -> None:
    """Adapters that change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1, generator=generator)


@dataclass(frozen=True)
class Checkpoints:
    """Each of policy, helpfulness and safety twice: an adapter over the base, and merged."""

    base: Path
    folder: Path

    def path(self, name: str, *, merged: bool) -> Path:
        return self.folder / ("merged" if merged else "adapter") / name


@pytest.fixture(scope="module")
def checkpoints(tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    found = Checkpoints(tiny_policy_path, tmp_path_factory.mktemp("roles"))
    tokenizer = load_tokenizer(tiny_policy_path)
    policy: Any = load_policy(tiny_policy_path, adapter=ADAPTER)
    _stir(policy, seed=1)
    save_policy(policy, tokenizer, found.path("policy", merged=True))
    save_policy(policy, tokenizer, found.path("policy", merged=False), merge=False)
    for seed, name in enumerate(("helpfulness", "safety"), start=2):
        reward = RewardModel.from_policy(tiny_policy_path, safety_head=name == "safety", seed=seed, adapter=ADAPTER)
        _stir(reward, seed=seed)
        reward.save(found.path(name, merged=True), tokenizer)
        reward.save(found.path(name, merged=False), tokenizer, merge=False)
    return found


@pytest.fixture()
def accelerator() -> Accelerator:
    return make_accelerator(seed=0)


def _shared(checkpoints: Checkpoints, accelerator: Accelerator, **options: Any) -> SharedRoles:
    policy, helpfulness, safety = (checkpoints.path(n, merged=False) for n in ("policy", "helpfulness", "safety"))
    return SharedRoles.load(policy, str(helpfulness), str(safety), accelerator, **options)


def _separate(checkpoints: Checkpoints, accelerator: Accelerator) -> SeparateRoles:
    policy, helpfulness, safety = (checkpoints.path(n, merged=True) for n in ("policy", "helpfulness", "safety"))
    value = RewardModel.load(helpfulness)
    judges = (load_reward(folder) for folder in (helpfulness, safety))
    return SeparateRoles(load_policy(policy), load_policy(policy), value, *judges, accelerator)


def _rollouts(count: int = 9) -> list[Rollout]:
    generator = torch.Generator().manual_seed(0)
    rollouts = []
    for i in range(count):
        sizes = torch.randint(2, 9, (2,), generator=generator).tolist()
        prompt, answer = (tuple(torch.randint(3, 300, (n,), generator=generator).tolist()) for n in sizes)
        rollouts.append(Rollout((0, *prompt), answer, i % 3 != 0, 0.1 * i * i, 0.0, 0.1 * i * i, False))
    return rollouts


def _experience(
    roles: Any, accelerator: Accelerator, temperature: float = 1.0
) -> tuple[Any, list[Minibatch], dict[str, float]]:
    stepper = roles.prepare(OPTIMIZER, temperature)
    minibatches = make_minibatches(_rollouts(), CONFIG, accelerator, pad_id=2, seed=0)
    figures = add_experience(minibatches, stepper.model, roles.reference_logprobs, CONFIG, accelerator)
    return stepper, minibatches, figures


def test_both_rewards_equal_merged_models(checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    shared, separate = _shared(checkpoints, accelerator), _separate(checkpoints, accelerator)
    for name in ("helpfulness", "safety", "helpfulness"):
        scores, expected = (getattr(roles, name)(TALKS) for roles in (shared, separate))
        assert expected.std() > 0.05
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_what_an_adapter_had_to_cut_is_said(checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    reward: Any = _shared(checkpoints, accelerator).safety
    short = Renderer(load_tokenizer(checkpoints.base), cut=True)
    short.max_length = len(short.dialogue(TALKS[3]).input_ids)
    reward._function.renderer = short
    for talks in (TALKS[3:4], TALKS[:1] * 3):
        reward(talks)
    (said,) = suspicious_scoring(safety=reward)
    assert said.startswith("safety scored 75% of its dialogues cut to its context")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_experience_equals_separate_models(
    checkpoints: Checkpoints, accelerator: Accelerator, temperature: float
) -> None:
    """Log-probabilities of policy and reference, values, advantages, returns, and the figures."""
    _, ours, figures = _experience(_shared(checkpoints, accelerator), accelerator, temperature)
    _, theirs, expected = _experience(_separate(checkpoints, accelerator), accelerator, temperature)
    assert figures == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert figures["kl"] == 0.0
    for one, other in zip(ours, theirs, strict=True):
        for (batch, _), (wanted, _) in zip(one.batches, other.batches, strict=True):
            for name in ("old_logprobs", "ref_logprobs", "old_values", "advantages", "returns"):
                torch.testing.assert_close(batch[name], wanted[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("shared", [True, False])
def test_at_a_temperature_both_policies_are_what_the_sampler_drew_from(
    checkpoints: Checkpoints, accelerator: Accelerator, shared: bool
) -> None:
    """Each answer's log-probability, of the policy and of its start, is the one that the sampler drew it with."""
    roles = (_shared if shared else _separate)(checkpoints, accelerator)
    params = SamplingParams(max_new_tokens=8, temperature=0.5, seed=4)
    renderer = Renderer(load_tokenizer(checkpoints.base))
    ppo = PPO(roles, renderer, CONFIG, params, accelerator)
    asked = [talk[:1] for talk in TALKS[::3]]
    starts, drawn = renderer.prompts(asked), ppo.environment.sampler.sample(asked, 4, params)
    pairs = [(tuple(start), sample) for start, samples in zip(starts, drawn, strict=True) for sample in samples]
    rollouts = [
        Rollout(start, sample.token_ids, True, 0.0, 0.0, float(i), False) for i, (start, sample) in enumerate(pairs)
    ]
    minibatches = make_minibatches(rollouts, CONFIG, accelerator, pad_id=2, seed=0)
    figures = add_experience(minibatches, ppo.stepper.model, roles.reference_logprobs, CONFIG, accelerator)
    assert figures["kl"] == 0.0
    apart = []
    for batch, _ in (pair for minibatch in minibatches for pair in minibatch.batches):
        wanted = [pairs[row][1] for row in batch["rows"].tolist()]
        for name in ("old_logprobs", "ref_logprobs"):
            sums = batch[name].sum(1).tolist()
            assert sums == pytest.approx([sample.sampling_logprob for sample in wanted], abs=1e-4)
        apart += [abs(sample.logprob - found) for sample, found in zip(wanted, sums, strict=True)]
    assert max(apart) > 0.1, "the temperature changes nothing, so that the test cannot fail"
    assert update(ppo.stepper, minibatches, CONFIG, lambda step: 1e-2)["first_ratio"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("checkpointing", "temperature"), [(False, 1.0), (True, 1.0), (False, 0.6)])
def test_losses_and_gradients_equal_separate_models(
    checkpoints: Checkpoints, accelerator: Accelerator, checkpointing: bool, temperature: float
) -> None:
    """A merged weight W + s B A with gradient G gives B the gradient s G A^T, and A the gradient s B^T G."""
    loss, results = ppo_loss(CONFIG), []
    shared, separate = _shared(checkpoints, accelerator), _separate(checkpoints, accelerator)
    for roles in (shared, separate):
        stepper, minibatches, _ = _experience(roles, accelerator, temperature)
        if checkpointing and roles is shared:
            stepper.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        stepper.model.train()
        sums: dict[str, float] = {}
        for batch, _ in (pair for minibatch in minibatches for pair in minibatch.batches):
            batch["old_logprobs"] = batch["old_logprobs"] - 0.3 * batch["advantages"].sign()  # clips bite
            value, figures = loss(stepper.model, batch)
            value.backward()
            for name, figure in {"loss": value, **figures}.items():
                sums[name] = sums.get(name, 0.0) + figure.item()
        results.append((stepper.model, sums))
    (ours, sums), (theirs, expected) = results
    assert sums == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert expected["clip_fraction"] > 3
    torch.testing.assert_close(ours.value_head.weight.grad, theirs.value.model.score.weight.grad, rtol=1e-4, atol=1e-5)
    compared = 0
    for name, layer in ours.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        for role, model in ((POLICY, theirs.policy), (VALUE, theirs.value.model)):
            gradient = model.get_submodule(name).weight.grad
            a, b, scaling = layer.lora_A[role].weight, layer.lora_B[role].weight, layer.scaling[role]
            torch.testing.assert_close(b.grad, scaling * gradient @ a.T, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(a.grad, scaling * b.T @ gradient, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared == 2 * 14
    frozen = [p for n, p in ours.named_parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen) and len(frozen) > 14


def test_only_policy_and_value_move_and_one_base_is_held(checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    shared = _shared(checkpoints, accelerator)
    stepper, minibatches, _ = _experience(shared, accelerator)
    before = {name: p.detach().clone() for name, p in stepper.model.named_parameters()}
    update(stepper, minibatches, CONFIG, lambda step: 1e-2)
    moved = {name for name, p in stepper.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n, p in stepper.model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-2] for name in moved} == {POLICY, VALUE, "value_head"}
    base = sum(p.numel() for p in load_policy(checkpoints.base).parameters())
    held = {p.data_ptr(): p.numel() for p in stepper.model.parameters() if p.numel()}
    for judge in (shared.helpfulness, shared.safety):
        held |= {p.data_ptr(): p.numel() for p in judge._function.model.parameters()}
    adapters = sum(p.numel() for n, p in stepper.model.named_parameters() if ".lora_" in n)
    heads = 32 + 32 + 32 + 32 + 1
    assert sum(held.values()) == base + adapters + heads


def test_the_sampler_takes_the_policys_adapter(checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    shared, separate = _shared(checkpoints, accelerator), _separate(checkpoints, accelerator)
    prompts = [talk[:1] for talk in TALKS]
    drawn = []
    for roles in (shared, separate):
        roles.prepare(OPTIMIZER)
        renderer = Renderer(load_tokenizer(checkpoints.base))
        roles.helpfulness(TALKS)
        with roles.gathered() as model:
            drawn.append(InProcessSampler(model, renderer).sample(prompts, 2, SamplingParams(max_new_tokens=8)))
    assert [[s.token_ids for s in answers] for answers in drawn[0]] == [
        [s.token_ids for s in answers] for answers in drawn[1]
    ]


def test_the_saved_adapter_is_whole_and_loads(
    checkpoints: Checkpoints, accelerator: Accelerator, tmp_path: Path
) -> None:
    shared = _shared(checkpoints, accelerator)
    stepper, minibatches, _ = _experience(shared, accelerator)
    update(stepper, minibatches, CONFIG, lambda step: 1e-2)
    tokenizer = load_tokenizer(checkpoints.base)
    shared.save_policy(tmp_path / "saved", tokenizer)
    shapes = weight_shapes(tmp_path / "saved")
    assert shapes == weight_shapes(checkpoints.path("policy", merged=False)) and len(shapes) == 28
    again = SharedRoles.load(tmp_path / "saved", "builtins:len", "builtins:len", accelerator, with_value=False)
    batch = minibatches[0].batches[0][0]
    saved, _, _ = again.prepare(OPTIMIZER).model(batch)
    torch.testing.assert_close(saved, stepper.model(batch)[0])


def test_a_base_without_adapter_is_its_own_reference(checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    """The new adapter changes nothing, so the KL is 0; the value starts from a new head, or from helpfulness."""
    rewards = ("builtins:len", str(checkpoints.path("safety", merged=True)))
    roles = SharedRoles.load(checkpoints.base, *rewards, accelerator, adapter=ADAPTER, seed=3)
    ppo = PPO(
        roles,
        Renderer(load_tokenizer(checkpoints.base)),
        CONFIG,
        SamplingParams(max_new_tokens=4),
        accelerator,
    )
    minibatches = make_minibatches(_rollouts(), CONFIG, accelerator, pad_id=2, seed=0)
    figures = add_experience(minibatches, ppo.stepper.model, roles.reference_logprobs, CONFIG, accelerator)
    assert figures["kl"] == 0.0
    update(ppo.stepper, minibatches, CONFIG, lambda step: 1e-2)
    moved = add_experience(minibatches, ppo.stepper.model, roles.reference_logprobs, CONFIG, accelerator)
    assert moved["kl_k3"] > 1e-4


def test_a_value_over_another_base_is_refused(checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    with pytest.raises(InputError, match=r"value_from: .* is not an adapter over .* \(whole\), the base"):
        _shared(checkpoints, accelerator, value_from=checkpoints.path("helpfulness", merged=True))


def test_an_adapter_of_other_layers_is_refused(
    checkpoints: Checkpoints, accelerator: Accelerator, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(checkpoints.path("helpfulness", merged=False), folder)
    file = folder / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match="does not fit the shared base"):
        SharedRoles.load(checkpoints.path("policy", merged=False), str(folder), "builtins:len", accelerator)


def test_a_base_in_4_bit_is_refused_under_zero_3_before_it_is_loaded(
    checkpoints: Checkpoints, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.training.whole.is_partitioned", lambda accelerator: True)
    monkeypatch.setattr("rlhf.ppo.shared.load_base", lambda *_: pytest.fail("loaded"))
    rewards = ("builtins:len", "builtins:len")
    with pytest.raises(InputError, match=r"quantization: weights in 4 bit cannot be partitioned .*ZeRO-3"):
        SharedRoles.load(checkpoints.base, *rewards, accelerator, quantization="nf4")
