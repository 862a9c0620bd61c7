"""Loading and saving policies: pad tokens, LoRA merges, QLoRA on CPU, and the sentences for what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.errors import InputError
from rlhf.models.checkpoint.fields import WholeCheckpoint
from rlhf.models.checkpoint.folder import adapter_settings, require_checkpoint
from rlhf.models.config import AdapterConfig
from rlhf.models.logprobs import sequence_logprobs
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.setup import load_roles
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import make_optimizer

IDS = torch.tensor([[1, 5, 9, 33, 60, 7], [4, 8, 15, 16, 23, 42]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def train_steps(model: torch.nn.Module, steps: int = 3, rate: float = 1e-2) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = -sequence_logprobs(model, IDS, torch.ones_like(IDS)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_whole_weights_round_trip(tiny_policy_path: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(tiny_policy_path), load_tokenizer(tiny_policy_path)
    train_steps(model)
    save_policy(model, tokenizer, tmp_path / "c")
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "c")))
    assert AutoTokenizer.from_pretrained(tmp_path / "c").chat_template == tokenizer.chat_template
    assert not list((tmp_path / "c").glob("*.bin"))


def test_lora_is_saved_merged_and_the_model_in_memory_is_untouched(tiny_policy_path: Path, tmp_path: Path) -> None:
    model = load_policy(tiny_policy_path, adapter=AdapterConfig(r=4, alpha=8, dropout=0.0))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    losses = train_steps(model)
    assert losses[-1] < losses[0]
    before = logits(model)
    save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "c")
    assert torch.equal(logits(model), before)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    torch.testing.assert_close(logits(plain), before, atol=1e-4, rtol=0)
    assert not torch.allclose(logits(load_policy(tiny_policy_path)), before, atol=1e-3)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_fresh_adapter_merges_to_the_base_itself(tiny_policy_path: Path, tmp_path: Path) -> None:
    model = load_policy(tiny_policy_path, adapter=AdapterConfig(r=2))
    save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "c")
    merged, base = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (tmp_path / "c", tiny_policy_path))
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[k], base[k]) for k in base)


def test_an_adapter_over_whole_weights_can_be_saved_alone(tiny_policy_path: Path, tmp_path: Path) -> None:
    size = AdapterConfig(r=4, alpha=8, dropout=0.0, merge=False)
    model, tokenizer = load_policy(tiny_policy_path, adapter=size), load_tokenizer(tiny_policy_path)
    losses = train_steps(model)
    save_policy(model, tokenizer, tmp_path / "c", merge=size.merge)
    assert {p.name for p in (tmp_path / "c/adapter").iterdir() if p.suffix in (".safetensors", ".json")} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "base.json",
    }
    assert not list((tmp_path / "c").glob("*.safetensors"))
    want = logits(model)
    assert torch.equal(logits(load_policy(tmp_path / "c")), want)

    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "c/adapter")), want)

    again = load_policy(tmp_path / "c", adapter=size)
    assert torch.equal(logits(again), want)
    assert train_steps(again)[-1] < losses[-1]
    save_policy(again, tokenizer, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(again), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match=r"quantization: the adapter of .* was trained over whole weights"):
        load_policy(tmp_path / "c", quantization="nf4")
    with pytest.raises(InputError, match="no weight of this model is trained"):
        make_optimizer(load_policy(tmp_path / "c"), OptimizerConfig())


def test_an_adapter_alone_brings_its_pad_embedding_back(tiny_policy_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy_path, tmp_path / "p")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "p")
    tokenizer.add_special_tokens({"pad_token": "<extra>"})
    tokenizer.save_pretrained(tmp_path / "p")
    model = load_policy(tmp_path / "p", adapter=AdapterConfig(r=4, alpha=8, dropout=0.0))
    train_steps(model)
    save_policy(model, load_tokenizer(tmp_path / "p"), tmp_path / "c", merge=False)
    loaded = load_policy(tmp_path / "c")
    assert loaded.get_input_embeddings().weight.shape[0] == 301
    assert torch.equal(logits(loaded), logits(model))


def test_qlora_trains_adapters_only_and_comes_back_the_same(tiny_policy_path: Path, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    adapter = AdapterConfig(r=4, alpha=8, dropout=0.0)
    model = load_policy(tiny_policy_path, adapter=adapter, quantization="nf4")
    linear4bit = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(linear4bit) == 14 and not any(m.support_avx512bf16_for_cpu for m in linear4bit)
    quantised = [m.weight.detach().clone() for m in linear4bit]
    logits(model)  # an eval forward must not repack the weights
    losses = train_steps(model)
    assert losses[-1] < losses[0]
    model.train()
    (-sequence_logprobs(model, IDS, torch.ones_like(IDS)).mean()).backward()
    for name, p in model.named_parameters():
        assert ("lora_" in name) == (p.grad is not None and bool(p.grad.abs().sum() > 0)), name
    assert all(torch.equal(m.weight, w) for m, w in zip(linear4bit, quantised, strict=True))

    save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "c")
    assert (
        not list((tmp_path / "c").glob("*.safetensors"))
        and (tmp_path / "c/adapter/adapter_model.safetensors").is_file()
    )
    torch.testing.assert_close(logits(load_policy(tmp_path / "c")), logits(model), atol=1e-5, rtol=0)
    again = load_policy(tmp_path / "c", adapter=adapter)
    assert train_steps(again)[-1] < losses[-1]
    with pytest.raises(InputError, match="has r 4 and alpha 8"):
        load_policy(tmp_path / "c", adapter=AdapterConfig(r=8))


def test_4_bit_weights_compute_in_float32_on_a_cpu(tiny_policy_path: Path) -> None:
    """In bfloat16 a processor without instructions for it took seven times as long."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = load_policy(tiny_policy_path, quantization="nf4")
    if next(model.parameters()).device.type != "cpu":
        pytest.skip("on a GPU they compute in bfloat16")
    layer = next(m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    whole = bitsandbytes.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
    rows = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(rows), rows @ whole.T, rtol=1e-5, atol=1e-6)


def test_saving_4_bit_weights_without_adapter_is_refused(tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_policy(tiny_policy_path, quantization="nf4")
    with pytest.raises(InputError, match="no adapter"):
        save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "c")


def test_weights_held_in_few_bits_are_run_and_not_trained(tiny_policy_path: Path, tmp_path: Path) -> None:
    """Training them would run to its end and then not be saved."""
    folder = shutil.copytree(tiny_policy_path, tmp_path / "four")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    WholeCheckpoint().inputs("policy", folder, None)
    sentence = r"checkpoint: .*four holds its weights quantised already \(bitsandbytes\), .* name a folder with"
    with pytest.raises(InputError, match=sentence):
        WholeCheckpoint(trained=True).inputs("policy", folder, None)
    with pytest.raises(InputError, match=sentence):
        load_roles(folder, "rlhf.rewards.examples:Brevity", None, None, make_accelerator(seed=0))


def test_a_pad_token_is_added_where_it_is_missing_or_the_end_token(tiny_policy_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(tiny_policy_path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    fixed = load_tokenizer(folder)
    assert fixed.pad_token == "<pad>" and fixed.pad_token_id != fixed.eos_token_id

    tokenizer.pad_token = "<extra>"
    tokenizer.add_special_tokens({"pad_token": "<extra>"})
    tokenizer.save_pretrained(folder)
    old = load_policy(tiny_policy_path)
    model = load_policy(folder)
    assert model.get_input_embeddings().weight.shape[0] == len(load_tokenizer(folder)) > 300
    assert model.config.pad_token_id == load_tokenizer(folder).pad_token_id
    torch.testing.assert_close(logits(model)[..., :300], logits(old))
    torch.testing.assert_close(model.get_input_embeddings().weight[-1], old.get_input_embeddings().weight.mean(0))
    assert torch.equal(logits(model), logits(load_policy(folder)))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("tokenizer_config.json", "has no tokenizer_config.json"),
        ("config.json", "has no config.json"),
        ("model.safetensors", r"has no \*\.safetensors"),
    ],
)
def test_a_checkpoint_that_lacks_a_file_is_refused(
    tiny_policy_path: Path, tmp_path: Path, broken: str, message: str
) -> None:
    shutil.copytree(tiny_policy_path, tmp_path / "p")
    (tmp_path / "p" / broken).unlink()
    with pytest.raises(InputError, match=message):
        load_policy(tmp_path / "p")


def test_a_stage_s_folder_is_no_checkpoint_but_holds_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(InputError, match=f"is the folder of a stage; name {tmp_path}/checkpoint, the model in it"):
        require_checkpoint(tmp_path)


def test_an_adapter_s_settings_are_the_same_bytes_on_every_run(tiny_policy_path: Path, tmp_path: Path) -> None:
    """peft keeps the layers' names in a set, whose order changes from process to process."""
    adapter, tokenizer = AdapterConfig(r=2, merge=False), load_tokenizer(tiny_policy_path)
    save_policy(load_policy(tiny_policy_path, adapter=adapter), tokenizer, tmp_path / "policy", merge=False)
    reward = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0, adapter=adapter)
    reward.save(tmp_path / "reward", tokenizer, merge=False)
    base = SharedBase(load_policy(tiny_policy_path))
    base.add_new("policy", adapter, tiny_policy_path, seed=0)
    base.save("policy", tmp_path / "shared")
    for name in ("policy", "reward", "shared"):
        layers = adapter_settings(tmp_path / name)["target_modules"]
        assert len(layers) > 6 and layers == sorted(layers)


def test_a_reward_model_is_no_policy(tiny_policy_path: Path, tmp_path: Path) -> None:
    """transformers would draw a language-model head at random, another one at each load, without a word."""
    tokenizer = load_tokenizer(tiny_policy_path)
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(tmp_path / "whole", tokenizer)
    adapter = AdapterConfig(r=2, merge=False)
    trained = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0, adapter=adapter)
    trained.save(tmp_path / "adapter", tokenizer, merge=False)
    for name in ("whole", "adapter"):
        with pytest.raises(InputError, match=rf"{name} is a reward model \(it has score.weight\)"):
            load_policy(tmp_path / name)


def test_weights_that_are_missing_or_cut_off_are_not_drawn_at_random(tiny_policy_path: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "p", "model.layers.1.mlp.up_proj.weight"
    shutil.copytree(tiny_policy_path, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in weights.items() if n != name}, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_policy, lambda path: RewardModel.from_policy(path, safety_head=False, seed=0)):
        with pytest.raises(InputError, match=rf"p lacks the weights {name}"):
            load(folder)
    whole = (tiny_policy_path / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model.safetensors cannot be read"):
        load_policy(folder)


def test_a_config_that_transformers_does_not_know_is_one_sentence(tiny_policy_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy_path, tmp_path / "p")
    for content in ("{", '{"model_type": "mine"}'):
        (tmp_path / "p" / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"checkpoint: .*p cannot be loaded \("):
            load_policy(tmp_path / "p")


def test_a_folder_that_does_not_exist_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hf download"):
        load_tokenizer(tmp_path / "nowhere")


def test_adapter_config_refuses_bad_values() -> None:
    for bad, message in [({"r": 0}, "r: must"), ({"alpha": 0}, "alpha: must"), ({"dropout": 1.0}, "dropout: must")]:
        with pytest.raises(InputError, match=message):
            AdapterConfig(**bad)


def test_a_wrong_dtype_or_a_package_not_installed_is_one_sentence(
    tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("float33", "int64", "nn"):
        with pytest.raises(InputError, match="dtype: must be"):
            load_policy(tiny_policy_path, dtype=wrong)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"adapter: LoRA needs peft, not installed here; install with `pip install peft`"
    ):
        load_policy(tiny_policy_path, adapter=AdapterConfig())
