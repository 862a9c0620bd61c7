"""recipes/ppo.py, run for real as a process, and its answers to bad input."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
REWARDS = '''"""A user's own reward functions."""
import torch

def brevity(conversations):
    return torch.tensor([-0.1 * len(c[-1]["content"]) for c in conversations])

def safe(conversations):
    return torch.full((len(conversations),), 2.0)

def broken(conversations):
    return torch.full((len(conversations),), float("nan"))
'''
FIGURES = {"reward", "helpfulness", "safety", "gate_share", "length", "finished_share", "kl", "kl_k3", "entropy"}
FIGURES |= {"kl_k2", "beta", "repetition"}
FIGURES |= {"explained_variance", "policy_loss", "value_loss", "clip_fraction", "first_ratio", "grad_norm", "skipped"}


@pytest.fixture()
def world(tmp_path: Path) -> Path:
    """A working folder with prompts and a module of reward functions."""
    texts = ["what is", "the river of velda", "hello", "please answer in one word", "how do I paint my own goat"]
    for name in ("prompts", "validation"):
        rows = [
            {
                "id": f"{name}{i}",
                "messages": [{"role": "user", "content": text}],
                "domain": "safety" if i == 1 else "helpfulness",
            }
            for i, text in enumerate(texts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    return tmp_path


def _arguments(policy: Path, *extra: str) -> list[str]:
    options = {
        "output": "out",
        "policy": str(policy),
        "helpfulness": "my_rewards:brevity",
        "safety": "my_rewards:safe",
        "prompts": "prompts.jsonl",
        "validation_prompts": "validation.jsonl",
        "sampling.max_new_tokens": "6",
        "ppo.iterations": "3",
        "ppo.batch_size": "10",
        "ppo.samples_per_prompt": "2",
        "ppo.optimizer.batch_size": "5",
        "ppo.optimizer.learning_rate": "1e-3",
        "ppo.evaluate_every": "2",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)] + list(extra)


def _run(world: Path, policy: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "ppo.py"), *_arguments(policy, *extra)],
        cwd=world,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _run_here(world: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, *extra: str) -> None:
    """The same in this process, which has torch loaded."""
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("ppo")
    recipe.main(parse_config(recipe.PPORecipeConfig, _arguments(policy, *extra)))


def test_ppo_runs_and_writes_what_it_says(world: Path, tiny_policy_path: Path) -> None:
    done = _run(world, tiny_policy_path, "--referee", "my_rewards:safe")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(world / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(rows[i].keys() >= FIGURES for i in range(3))
    assert [i for i in range(4) if "heldout_reward" in rows[i]] == [0, 2, 3]
    assert rows[0]["kl"] == rows[0]["kl_k3"] == 0.0
    assert all(row["first_ratio"] == pytest.approx(1.0, abs=1e-6) for row in rows[:3])
    assert rows[0]["gate_share"] == pytest.approx(0.2)
    assert rows[0]["reward"] == pytest.approx(0.8 * rows[0]["helpfulness"] + 0.2 * 2.0, abs=0.5)
    assert rows[0].keys() >= {f"heldout_{n}" for n in ("helpfulness", "safety", "kl_k3", "length", "repetition")}
    assert rows[0]["heldout_referee"] == 2.0 and rows[0]["heldout_referee_error"] == 0.0
    assert rows[0]["heldout_reward_error"] > 0
    answers = [json.loads(line) for line in (world / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt_id"]) for row in answers] == [
        (step, f"validation{i}") for step in (0, 2, 3) for i in range(5)
    ]
    assert not (world / "out" / "resume").exists()
    result = json.loads((world / "out" / "ppo.json").read_text())
    assert (result["iterations"], result["stopped"]) == (3, "iterations")
    held_out = [row["heldout_reward"] for row in rows if "heldout_reward" in row]
    assert result["best_reward"] == max(held_out)
    assert json.loads((world / "out" / "stage.json").read_text())["inputs"].keys() == {
        "policy",
        "prompts",
        "validation_prompts",
        *(f"{reward}.code" for reward in ("helpfulness", "safety", "referee")),
    }

    from rlhf.models.policy import load_policy, load_tokenizer

    load_policy(world / "out" / "checkpoint")
    assert load_tokenizer(world / "out" / "checkpoint").chat_template


def test_an_ensemble_goes_where_a_reward_model_goes(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf.models.policy import load_tokenizer
    from rlhf.models.reward_model import RewardModel
    from rlhf.ppo import setup

    for seed in (0, 1):
        model = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=seed)
        model.save(world / f"r{seed}", load_tokenizer(tiny_policy_path))
    (world / "both.yaml").write_text("members: [my_rewards:brevity, r0, r1]\nuncertainty_weight: 0.5\n")
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    started: list[Path] = []
    load = setup.load_value_model
    monkeypatch.setattr(setup, "load_value_model", lambda path, *a, **k: started.append(path) or load(path, *a, **k))
    recipe = importlib.import_module("ppo")
    extra = ("--helpfulness", "both.yaml", "--ppo.iterations", "1")
    recipe.main(parse_config(recipe.PPORecipeConfig, _arguments(tiny_policy_path, *extra)))
    inputs = json.loads((world / "out" / "stage.json").read_text())["inputs"]
    assert {"helpfulness", "helpfulness.1", "helpfulness.2"} <= inputs.keys() and "helpfulness.0" not in inputs
    assert inputs["helpfulness.1"]["digest"] != inputs["helpfulness.2"]["digest"]
    assert started == [Path("r0")]


def test_roles_on_one_base_in_4_bit(world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    from rlhf.models.policy import load_policy

    extra = ("--roles", "shared", "--quantization", "nf4", "--adapter.r", "2", "--ppo.iterations", "1")
    _run_here(world, tiny_policy_path, monkeypatch, *extra)
    rows = read_metrics(world / "out" / "metrics.jsonl")
    assert rows[0]["kl"] == 0.0 and rows[0]["first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert rows[1]["heldout_kl"] != 0.0
    assert not list((world / "out" / "checkpoint").glob("*.safetensors"))
    assert hasattr(load_policy(world / "out" / "checkpoint"), "peft_config")


@pytest.mark.parametrize("roles", ["separate", "shared"])
def test_a_policy_trained_at_a_temperature_is_saved_to_be_sampled_at_it(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch, roles: str
) -> None:
    """The start's own nucleus goes: the policy was trained without one. At 1 what the start names stays."""
    from transformers import GenerationConfig

    from rlhf.models.policy import load_policy, load_tokenizer, save_policy

    model = load_policy(tiny_policy_path)
    model.generation_config.update(do_sample=True, temperature=0.2, top_p=0.9)
    save_policy(model, load_tokenizer(tiny_policy_path), world / "start")
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("ppo")
    for temperature in (0.6, 1.0):
        shape = ("--sampling.temperature", str(temperature), "--output", f"out{temperature}", "--roles", roles)
        shape += ("--ppo.iterations", "1", "--ppo.evaluate_every", "1")
        recipe.main(parse_config(recipe.PPORecipeConfig, _arguments(world / "start", *shape)))
    saved = {t: GenerationConfig.from_pretrained(world / f"out{t}" / "checkpoint") for t in (0.6, 1.0)}
    names = ("do_sample", "temperature", "top_p", "top_k")
    assert [getattr(saved[0.6], name) for name in names] == [True, 0.6, 1.0, 0]
    assert [getattr(saved[1.0], name) for name in names] == [True, 0.2, 0.9, None]
    cold, warm = (read_metrics(world / f"out{t}" / "metrics.jsonl")[0] for t in (0.6, 1.0))
    for row in (cold, warm):
        assert row["kl"] == row["heldout_kl"] == 0.0 and row["first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert cold["entropy"] < warm["entropy"]


def test_the_dry_run_plans_without_weights(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy's config is enough; what does not fit gets options that make it fit."""
    (world / "config_only").mkdir()
    (world / "config_only" / "config.json").write_text((tiny_policy_path / "config.json").read_text())
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("ppo")
    small = ("--dry_run.memory_gib", "0.003", "--dry_run.mixed_precision", "no", "--dry_run.prompt_tokens", "32")
    small += ("--safety", "not_trained_yet", "--sampling.temperature", "0.7")
    recipe.main(parse_config(recipe.PPORecipeConfig, _arguments(world / "config_only", *small)))
    said = capsys.readouterr().out
    assert "It does NOT fit" in said
    assert said.rstrip().endswith("fits\nNot there yet, and taken to be of the policy's size: safety.")
    assert "--ppo.optimizer.gradient_checkpointing true" in said
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (
            ("--policy", "nowhere"),
            "policy: nowhere does not exist; a dry run takes any checkpoint of its size, as its base",
        ),
        (
            ("--roles", "shared", "--quantization", "nf4", "--dry_run.zero_stage", "3"),
            "dry_run.zero_stage: 3 cannot partition weights in 4 bit",
        ),
    ],
)
def test_a_dry_run_of_what_cannot_run_gets_one_sentence(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("ppo")
    arguments = _arguments(tiny_policy_path, "--dry_run.devices", "1", *extra)
    with pytest.raises(InputError, match=sentence):
        recipe.main(parse_config(recipe.PPORecipeConfig, arguments))


def test_the_dry_run_holds_the_base_as_the_policys_adapter_was_trained(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a QLoRA policy the run itself takes the 4 bit from the checkpoint, named or not."""
    pytest.importorskip("bitsandbytes")
    from rlhf.models.config import AdapterConfig
    from rlhf.models.policy import load_policy, load_tokenizer, save_policy

    policy = load_policy(tiny_policy_path, adapter=AdapterConfig(r=2), quantization="nf4")
    save_policy(policy, load_tokenizer(tiny_policy_path), world / "qlora")
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("ppo")
    said = []
    for extra in ((), ("--quantization", "nf4")):
        arguments = _arguments(world / "qlora", "--roles", "shared", "--dry_run.devices", "1", *extra)
        recipe.main(parse_config(recipe.PPORecipeConfig, arguments))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_a_value_model_in_4_bit_is_refused(tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from rlhf.models.config import AdapterConfig
    from rlhf.models.policy import load_tokenizer
    from rlhf.models.reward_model import RewardModel
    from rlhf.ppo.setup import load_value_model

    tokenizer = load_tokenizer(tiny_policy_path)
    adapter = AdapterConfig(r=2)
    model = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0, adapter=adapter, quantization="nf4")
    model.save(tmp_path / "reward", tokenizer)
    with pytest.raises(InputError, match=r"value_from: .* is an adapter, whose base.*with whole weights"):
        load_value_model(tmp_path / "reward", tiny_policy_path, tokenizer, seed=0)


def test_the_value_starts_from_helpfulness_where_it_can(
    tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward model of another tokenizer or an adapter judges; the value then starts from the policy, and says so."""
    from rlhf.models.config import AdapterConfig
    from rlhf.models.policy import load_tokenizer
    from rlhf.models.reward_model import RewardModel
    from rlhf.ppo.setup import default_value

    tokenizer = load_tokenizer(tiny_policy_path)
    _other_reward(tmp_path / "other", tiny_policy_path)
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(tmp_path / "own", tokenizer)
    adapter = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0, adapter=AdapterConfig(r=2))
    adapter.save(tmp_path / "adapter", tokenizer, merge=False)
    other, own, over_base = (tmp_path / name for name in ("other", "own", "adapter"))
    assert default_value([own], tokenizer) == default_value([other, own], tokenizer) == own
    assert default_value([], tokenizer) is None and "value_from" not in capsys.readouterr().err
    assert default_value([other], tokenizer) is None and default_value([over_base], tokenizer) is None
    assert capsys.readouterr().err.count("the value starts from the policy with a new head") == 2


def test_a_broken_reward_function_ends_it_with_one_sentence(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^helpfulness \(broken\): score 0 is nan.*$"):
        _run_here(world, tiny_policy_path, monkeypatch, "--helpfulness", "my_rewards:broken")
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--helpfulness", "runs/demo/v3/helpfulness_reward"), "does not exist; `make demo` writes it"),
        (("--sampling.temperature", "0"), "sampling.temperature: must be above 0 for PPO, got 0"),
        (
            ("--sampling.top_p", "0.9"),
            "sampling.top_p: must be 1 for PPO, got 0.9: the ratio would not be the policy's",
        ),
        (("--sampling.top_k", "50"), "sampling.top_k: must be 0 for PPO, got 50: the ratio would not be"),
        (("--sampling.repetition_penalty", "1.2"), "sampling.repetition_penalty: must be 1 for PPO, got 1.2"),
        (("--sampling.stop", '["."]'), "sampling.stop: must be empty for PPO"),
        (("--ppo.samples_per_prompt", "3"), "batch_size: 10 must be a multiple of samples_per_prompt (3)"),
        (
            ("--sampling.max_new_tokens", "250", "--too_long", "refuse"),
            "prompts leave no room for 250 new tokens in its context of 256",
        ),
        (("--gate.threshold", "1.5"), "threshold: must lie between 0 and 1, got 1.5"),
        (("--gate.threshold_from", "prompts.jsonl"), "gate.threshold_from: prompts.jsonl is no gate_sweep.json"),
        (("--max_prompt_tokens", "2"), "prompts: prompts.jsonl has no prompts of at most 2 tokens"),
        (("--adapter.r", "4"), "adapter: is for adapters on one base; add --roles shared"),
        (("--dtype", "bfloat16"), "dtype: is for adapters on one base; add --roles shared"),
        (("--ppo.estimator", "rloo", "--value_from", "policy"), "value_from: rloo learns no value; leave it out"),
        (("--value_from", "other_reward"), "the tokenizer of other_reward is not the policy's"),
    ],
)
def test_bad_input_gets_one_sentence(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...], sentence: str
) -> None:
    if "other_reward" in extra:
        _other_reward(world / "other_reward", tiny_policy_path)
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("ppo")
    with pytest.raises(InputError) as caught:
        recipe.main(parse_config(recipe.PPORecipeConfig, _arguments(tiny_policy_path, *extra)))
    assert sentence in str(caught.value)
    assert not (world / "out").exists()


def _other_reward(folder: Path, policy: Path) -> None:
    """A reward model whose tokenizer has one token more."""
    from rlhf.models.policy import load_tokenizer
    from rlhf.models.reward_model import RewardModel

    tokenizer = load_tokenizer(policy)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    RewardModel.from_policy(policy, safety_head=False, seed=0).save(folder, tokenizer)


def test_ppo_that_kept_its_start_says_so(
    world: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is better than a reward that is the same for every answer."""
    extra = ("--helpfulness", "my_rewards:safe", "--ppo.iterations", "1", "--ppo.evaluate_every", "1")
    _run_here(world, tiny_policy_path, monkeypatch, *extra)
    sentence = "the policy kept is the one it started from: no evaluation had a better reward"
    assert f"  suspicious: {sentence} (2.000 at its start, 2.000 at most later)" in capsys.readouterr().err
    assert any(
        line.startswith(sentence)
        for line in json.loads((world / "out" / "stage.json").read_text())["closing"]["suspicious"]
    )
