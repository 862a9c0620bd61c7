"""Averages of reward models against sums made by hand, tensor by tensor, and the sentences for models that differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rlhf.cli import main
from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.models.averaging import average_checkpoints
from rlhf.models.batching import pad_rows
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes"))
import average_policies

IDS, MASK = pad_rows([[1, 5, 9, 33], [1, 60], [1, 7, 8, 9, 10, 11, 12, 4]], pad_id=2)


def scores(model: RewardModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, MASK).score


def noisy(
    path: Path,
    folder: Path,
    seed: int,
    *,
    safety_head: bool = True,
    r: int | None = None,
    quantization: Literal["nf4"] | None = "nf4",
) -> Path:
    """A reward model from the policy at `path`, what trains moved at random; where r is given an adapter alone."""
    quantization = None if r is None else quantization
    if quantization is not None:
        pytest.importorskip("bitsandbytes")
    adapter = None if r is None else AdapterConfig(r=r, alpha=3 * r, dropout=0.0)
    model = RewardModel.from_policy(path, safety_head=safety_head, seed=0, adapter=adapter, quantization=quantization)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    model.save(folder, load_tokenizer(path), merge=False)
    return folder


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """alpha / r x B A of each layer of an adapter checkpoint."""
    settings = json.loads((folder / "adapter/adapter_config.json").read_text())
    tensors = load_file(folder / "adapter/adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"]
    return {
        name: scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for name in tensors if "lora_A" in name
    }


def test_whole_weights_and_both_heads_are_weighted_means(tiny_policy_path: Path, tmp_path: Path) -> None:
    models = [noisy(tiny_policy_path, tmp_path / name, seed) for seed, name in enumerate("abc")]
    arguments = [*map(str, models), "--weights", "1", "2", "5", "--output", str(tmp_path / "mean")]
    main(["average", *arguments])
    for file in ("model.safetensors", "safety_head.safetensors"):
        a, b, c = (load_file(folder / file) for folder in models)
        mean = load_file(tmp_path / "mean" / file)
        assert mean.keys() == a.keys()
        for name in mean:
            torch.testing.assert_close(mean[name], (a[name] + 2 * b[name] + 5 * c[name]) / 8, atol=1e-6, rtol=0)
    assert "score.weight" in load_file(tmp_path / "mean/model.safetensors")
    loaded = RewardModel.load(tmp_path / "mean")
    assert scores(loaded).isfinite().all() and loaded.safety_head is not None
    assert load_tokenizer(tmp_path / "mean").chat_template == load_tokenizer(tiny_policy_path).chat_template


def test_the_mean_of_one_model_and_itself_is_that_model_whatever_its_shards(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    one = noisy(tiny_policy_path, tmp_path / "one", 1)
    tensors = load_file(one / "model.safetensors")
    two = noisy(tiny_policy_path, tmp_path / "two", 1)
    (two / "model.safetensors").unlink()
    parts = {f"model-0000{i}-of-00002.safetensors": sorted(tensors)[i - 1 :: 2] for i in (1, 2)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, two / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in parts.items() for name in names}
    (two / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    average_checkpoints([two, one], tmp_path / "mean")
    assert torch.equal(scores(RewardModel.load(tmp_path / "mean")), scores(RewardModel.load(one)))


@pytest.mark.parametrize("quantization", ["nf4", None])
def test_of_adapters_the_products_are_averaged_not_the_factors(
    quantization: Literal["nf4"] | None, tiny_policy_path: Path, tmp_path: Path
) -> None:
    a = noisy(tiny_policy_path, tmp_path / "a", 1, r=2, quantization=quantization)
    b = noisy(tiny_policy_path, tmp_path / "b", 2, r=3, quantization=quantization)
    average_checkpoints([a, b], tmp_path / "mean", weights=[3, 1])
    mean, one, two = (updates(folder) for folder in (tmp_path / "mean", a, b))
    assert len(mean) == 14 and mean.keys() == one.keys()
    for name in mean:
        torch.testing.assert_close(mean[name], 0.75 * one[name] + 0.25 * two[name], atol=1e-6, rtol=0)
    heads = [load_file(f / "adapter/adapter_model.safetensors") for f in (tmp_path / "mean", a, b)]
    score = [tensors["base_model.model.score.weight"] for tensors in heads]
    torch.testing.assert_close(score[0], 0.75 * score[1] + 0.25 * score[2])
    loaded = RewardModel.load(tmp_path / "mean")
    assert bool(getattr(loaded.model, "is_quantized", False)) == (quantization is not None)
    assert loaded.model.peft_config["default"].r == 5 and loaded.safety_head is not None
    again = RewardModel.from_policy(
        tmp_path / "mean", safety_head=True, seed=0, adapter=AdapterConfig(r=5, alpha=5, dropout=0.0)
    )
    assert torch.equal(scores(again), scores(loaded))


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_a_lower_rank_is_the_nearest_one(rank: int, tiny_policy_path: Path, tmp_path: Path) -> None:
    a, b = (noisy(tiny_policy_path, tmp_path / name, seed, r=10) for seed, name in enumerate("ab"))
    average_checkpoints([a, b], tmp_path / "mean", rank=rank)
    mean, one, two = (updates(folder) for folder in (tmp_path / "mean", a, b))
    for name in mean:
        u, s, v = torch.linalg.svd((0.5 * one[name] + 0.5 * two[name]).double(), full_matrices=False)
        nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(mean[name].double(), nearest, atol=1e-5, rtol=0)
    assert RewardModel.load(tmp_path / "mean").model.peft_config["default"].r == rank


@pytest.mark.parametrize("r", [None, 2])
def test_policies_are_averaged_too(r: int | None, tiny_policy_path: Path, tmp_path: Path) -> None:
    """Whole, or adapters over one base: by the recipe that a plan's step runs."""
    policies, adapter = [], None if r is None else AdapterConfig(r=r, alpha=3 * r, dropout=0.0)
    for seed, name in enumerate("ab"):
        policy = load_policy(tiny_policy_path, adapter=adapter)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in policy.parameters():
                p += 0.1 * torch.randn(p.shape, generator=generator) * p.requires_grad
        save_policy(policy, load_tokenizer(tiny_policy_path), tmp_path / name, merge=False)
        policies.append(tmp_path / name)
    given = ["--checkpoints", json.dumps([str(p) for p in policies]), "--weights", "[1, 3]"]
    options = [*given, "--output", str(tmp_path / "mean")]
    average_policies.main(parse_config(average_policies.AveragePoliciesConfig, options))
    mean = tmp_path / "mean" / "checkpoint"
    if r is None:
        one, two, found = (load_file(folder / "model.safetensors") for folder in (*policies, mean))
    else:
        one, two, found = (updates(folder) for folder in (*policies, mean))
    assert found.keys() == one.keys() and found
    for name in found:
        torch.testing.assert_close(found[name], (one[name] + 3 * two[name]) / 4, atol=1e-6, rtol=0)
    assert load_policy(mean).config.vocab_size == load_policy(policies[0]).config.vocab_size
    with pytest.raises(InputError, match="checkpoints: an average takes two or more, got 1"):
        parse_config(average_policies.AveragePoliciesConfig, ["--checkpoints", str(policies[0]), "--output", "x"])


def test_models_that_differ_get_one_sentence(tiny_policy_path: Path, tmp_path: Path) -> None:
    a, b = (noisy(tiny_policy_path, tmp_path / name, 1) for name in "ab")
    headless = noisy(tiny_policy_path, tmp_path / "headless", 1, safety_head=False)
    adapter = noisy(tiny_policy_path, tmp_path / "adapter", 1, r=2)
    over_whole = noisy(tiny_policy_path, tmp_path / "over_whole", 1, r=2, quantization=None)

    def refused(message: str, *folders: Path, **options: object) -> None:
        with pytest.raises(InputError, match=message):
            average_checkpoints(folders, tmp_path / "mean", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "mean").exists() and not (tmp_path / "mean.partial").exists()

    refused("two or more, got 1", a)
    refused("weights: must be 2 numbers above 0", a, b, weights=[1.0])
    for weight in (0.0, float("nan"), float("inf")):
        refused("weights: must be 2 numbers above 0", a, b, weights=[1.0, weight])
    refused(r"has no score\.weight", a, tiny_policy_path)
    refused(r"cannot be averaged \(one has no safety head\)", a, headless)
    refused(r"cannot be averaged \(one is an adapter\)", a, adapter)
    refused(r"cannot be averaged \(one adapter is over 4-bit weights\)", adapter, over_whole)
    refused("rank: cannot be 2; whole weights have none", a, b, rank=2)
    refused("rank: cannot be 5; give 1 to 4", adapter, adapter, rank=5)
    tokenizer = AutoTokenizer.from_pretrained(b)
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(b)
    refused("the chat template", a, b)
    tokenizer.add_tokens(["goats"])
    tokenizer.save_pretrained(b)
    refused("the tokenizer", a, b)
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    refused(r"config\.json, rms_norm_eps", a, b)
    (b / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    tensors = load_file(b / "model.safetensors")
    save_file(tensors | {"score.bias": torch.zeros(1)}, b / "model.safetensors", metadata={"format": "pt"})
    refused("names or shapes of the weights", a, b)
    with pytest.raises(InputError, match=r"output: .* exists already"):
        average_checkpoints([a, a], b)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["average", "nowhere", "nor_here", "--output", str(tmp_path / "mean")])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: checkpoint: nowhere is not a folder")
