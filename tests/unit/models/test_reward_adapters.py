"""Reward models trained by LoRA and QLoRA: the heads train too, nothing else changes, and what is saved is what was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from rlhf.errors import InputError
from rlhf.models.batching import pad_rows
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_base, load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel, RewardOutput

# the last row ends with the pad token: transformers' own classifiers look past it
IDS, MASK = pad_rows([[1, 5, 9, 33], [1, 60], [1, 7, 8, 9, 10, 11, 12, 4], [1, 2, 2, 6, 30, 2]], pad_id=2)
SIZE = AdapterConfig(r=4, alpha=8, dropout=0.0)


def outputs(model: RewardModel) -> RewardOutput:
    model.eval()
    with torch.no_grad():
        return model(IDS, MASK)


def train(model: RewardModel, steps: int = 4) -> list[float]:
    """Raise the first two scores and their safety logits over the others'; the loss of each step."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        score, safety = model(IDS, MASK)
        loss = -torch.nn.functional.logsigmoid(score[:2] - score[2:]).mean()
        if safety is not None:
            loss = loss - torch.nn.functional.logsigmoid(safety[:2] - safety[2:]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def parameters(model: RewardModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def start(path: Path, quantization: str | None = None, adapter: AdapterConfig | None = SIZE) -> RewardModel:
    if quantization:
        pytest.importorskip("bitsandbytes")
    return RewardModel.from_policy(path, safety_head=True, seed=3, adapter=adapter, quantization=quantization)


@pytest.fixture
def qlora(tiny_policy_path: Path, tmp_path: Path) -> tuple[Path, RewardModel]:
    """A QLoRA reward model after some steps, and where it is saved."""
    model = start(tiny_policy_path, "nf4")
    train(model)
    model.save(tmp_path / "qlora", load_tokenizer(tiny_policy_path))
    return tmp_path / "qlora", model


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_adapter_and_heads_train_and_nothing_else(tiny_policy_path: Path, quantization: str | None) -> None:
    model = start(tiny_policy_path, quantization)
    before = parameters(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {"model.score.weight", "safety_head.weight", "safety_head.bias"}
    assert trained == heads | {name for name in before if ".lora_" in name}
    assert len(trained) == 3 + 2 * 14  # A and B of seven linear layers, twice
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.05
    after = parameters(model)
    # a constant added to all logits does not change that loss
    still = {name for name in before if torch.equal(before[name], after[name])} - {"safety_head.bias"}
    assert still == set(before) - trained


def test_a_new_adapter_is_seeded_and_changes_no_score(tiny_policy_path: Path) -> None:
    state = torch.random.get_rng_state()
    one, same = start(tiny_policy_path), start(tiny_policy_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    whole = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=3)
    assert torch.equal(outputs(one).score, outputs(whole).score)


def test_lora_is_saved_merged(tiny_policy_path: Path, tmp_path: Path) -> None:
    model = start(tiny_policy_path)
    train(model)
    want = outputs(model)
    model.save(tmp_path / "c", load_tokenizer(tiny_policy_path))
    assert torch.equal(outputs(model).score, want.score), "saving must not touch the model in memory"
    got = outputs(RewardModel.load(tmp_path / "c"))
    torch.testing.assert_close(got.score, want.score, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.safety_logit, want.safety_logit, atol=1e-5, rtol=0)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    with torch.no_grad():
        logits = plain(input_ids=IDS[:3], attention_mask=MASK[:3]).logits[:, 0]
    torch.testing.assert_close(logits, want.score[:3], atol=1e-5, rtol=0)
    base = outputs(RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=3))
    assert not torch.allclose(base.score, want.score, atol=1e-2)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_lora_merges_where_weights_lie_transposed(tiny_policy_path: Path, tmp_path: Path) -> None:
    gpt2 = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=2)
    GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "p")
    load_tokenizer(tiny_policy_path).save_pretrained(tmp_path / "p")
    model = start(tmp_path / "p")
    train(model)
    model.save(tmp_path / "c", load_tokenizer(tmp_path / "p"))
    loaded = RewardModel.load(tmp_path / "c")
    torch.testing.assert_close(outputs(loaded).score, outputs(model).score, atol=1e-5, rtol=0)


def test_qlora_comes_back_the_same_and_is_what_peft_loads(
    qlora: tuple[Path, RewardModel], tiny_policy_path: Path
) -> None:
    folder, model = qlora
    want = outputs(model)
    assert not list(folder.glob("model*.safetensors")) and (folder / "adapter/adapter_model.safetensors").is_file()
    loaded = RewardModel.load(folder)
    got = outputs(loaded)
    assert torch.equal(got.score, want.score) and torch.equal(got.safety_logit, want.safety_logit)

    from peft import PeftModel

    base = load_base(tiny_policy_path, "nf4", "float32", AutoModelForSequenceClassification, num_labels=1)
    by_peft = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        logits = by_peft(input_ids=IDS[:3], attention_mask=MASK[:3]).logits[:, 0]
    torch.testing.assert_close(logits, want.score[:3], atol=1e-5, rtol=0)

    loaded.save(folder.parent / "again", load_tokenizer(folder))
    assert torch.equal(outputs(RewardModel.load(folder.parent / "again")).score, want.score)


def test_going_on_from_a_qlora_reward_model(qlora: tuple[Path, RewardModel]) -> None:
    folder, model = qlora
    again = RewardModel.from_policy(folder, safety_head=True, seed=99, adapter=SIZE)
    assert torch.equal(outputs(again).score, outputs(model).score)
    losses = train(again)
    assert losses[-1] < losses[0]
    with pytest.raises(InputError, match="has r 4 and alpha 8, asked are r 8"):
        RewardModel.from_policy(folder, safety_head=True, seed=0, adapter=AdapterConfig(r=8))


def test_a_qlora_policy_s_adapter_goes_on_as_a_reward_model(tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    policy = load_policy(tiny_policy_path, adapter=SIZE, quantization="nf4")
    for name, p in policy.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    save_policy(policy, load_tokenizer(tiny_policy_path), tmp_path / "sft")
    model = start(tmp_path / "sft")
    ids, mask = IDS[:1], MASK[:1]
    with torch.no_grad():
        states = policy.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        want = (states[0, 3] * model.model.score.weight[0]).sum()
    torch.testing.assert_close(outputs(model).score[0], want, atol=1e-5, rtol=0)
    losses = train(model)
    assert losses[-1] < losses[0]
    model.save(tmp_path / "reward", load_tokenizer(tmp_path / "sft"))
    assert torch.equal(outputs(RewardModel.load(tmp_path / "reward")).score, outputs(model).score)


def test_an_adapter_over_whole_weights_can_be_saved_alone(tiny_policy_path: Path, tmp_path: Path) -> None:
    model = start(tiny_policy_path)
    train(model)
    model.save(tmp_path / "c", load_tokenizer(tiny_policy_path), merge=False)
    want, loaded = outputs(model), RewardModel.load(tmp_path / "c")
    got = outputs(loaded)
    assert torch.equal(got.score, want.score) and torch.equal(got.safety_logit, want.safety_logit)
    assert not list((tmp_path / "c").glob("model*.safetensors"))

    from peft import PeftModel

    base = AutoModelForSequenceClassification.from_pretrained(tiny_policy_path, num_labels=1)
    by_peft = PeftModel.from_pretrained(base, tmp_path / "c/adapter").eval()
    with torch.no_grad():
        logits = by_peft(input_ids=IDS[:3], attention_mask=MASK[:3]).logits[:, 0]
    torch.testing.assert_close(logits, want.score[:3], atol=1e-5, rtol=0)

    again = start(tmp_path / "c")
    assert torch.equal(outputs(again).score, want.score)
    losses = train(again)
    assert losses[-1] < losses[0]
    again.save(tmp_path / "merged", load_tokenizer(tiny_policy_path))
    merged = RewardModel.load(tmp_path / "merged")
    torch.testing.assert_close(outputs(merged).score, outputs(again).score, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="is an adapter and cannot be trained without one"):
        start(tmp_path / "c", adapter=None)
    with pytest.raises(InputError, match="was trained over whole weights"):
        start(tmp_path / "c", "nf4")


def test_an_adapter_over_a_half_precision_backbone_is_saved_with_its_float32_head(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    """As it is trained on a GPU, whose mixed precision is bfloat16, where it is not merged."""
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=1, adapter=SIZE, dtype="bfloat16")
    model.save(tmp_path / "c", load_tokenizer(tiny_policy_path), merge=False)
    loaded = RewardModel.load(tmp_path / "c", dtype="bfloat16")
    assert torch.equal(outputs(loaded).score, outputs(model.eval()).score)


def test_a_policy_s_adapter_over_whole_weights_goes_on_as_a_reward_model(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    policy = load_policy(tiny_policy_path, adapter=SIZE)
    for name, p in policy.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    save_policy(policy, load_tokenizer(tiny_policy_path), tmp_path / "alone", merge=False)
    save_policy(policy, load_tokenizer(tiny_policy_path), tmp_path / "merged")
    alone, merged = start(tmp_path / "alone"), start(tmp_path / "merged", adapter=None)
    torch.testing.assert_close(outputs(alone).score, outputs(merged).score, atol=1e-5, rtol=0)


def test_what_cannot_be_trained_or_loaded_gets_one_sentence(
    qlora: tuple[Path, RewardModel], tiny_policy_path: Path
) -> None:
    folder, _ = qlora
    with pytest.raises(InputError, match="in 4 bit cannot be trained"):
        start(tiny_policy_path, "nf4", adapter=None)
    with pytest.raises(InputError, match="is an adapter and cannot be trained"):
        start(folder, adapter=None)
    base = Path(tiny_policy_path)
    (folder / "adapter/adapter_config.json").write_text(
        (folder / "adapter/adapter_config.json").read_text().replace(str(base), str(base.parent / "gone"))
    )
    with pytest.raises(InputError, match=r"is an adapter over .*gone, which does not exist"):
        RewardModel.load(folder)
    (folder / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks adapter_model\.safetensors"):
        RewardModel.load(folder)


def test_a_qlora_policy_is_no_reward_model(tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    policy = load_policy(tiny_policy_path, adapter=SIZE, quantization="nf4")
    save_policy(policy, load_tokenizer(tiny_policy_path), tmp_path / "sft")
    with pytest.raises(InputError, match=r"has no score\.weight"):
        RewardModel.load(tmp_path / "sft")


def test_going_on_from_a_whole_reward_model_keeps_its_heads(
    tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(tiny_policy_path, adapter=None)
    train(first)
    first.save(tmp_path / "c", load_tokenizer(tiny_policy_path))
    for adapter in (None, SIZE):
        again = RewardModel.from_policy(tmp_path / "c", safety_head=True, seed=99, adapter=adapter)
        assert torch.equal(outputs(again).score, outputs(first).score)
        assert torch.equal(outputs(again).safety_logit, outputs(first).safety_logit)
    assert "safety head" not in capsys.readouterr().err
    without = RewardModel.from_policy(tmp_path / "c", safety_head=False, seed=99)
    assert without.safety_head is None and torch.equal(outputs(without).score, outputs(first).score)
    assert "has a safety head, it is left out" in capsys.readouterr().err
    shutil.copytree(tmp_path / "c", tmp_path / "one")
    (tmp_path / "one/safety_head.safetensors").unlink()
    new = RewardModel.from_policy(tmp_path / "one", safety_head=True, seed=99)
    assert torch.equal(outputs(new).score, outputs(first).score)
    assert not torch.allclose(outputs(new).safety_logit, outputs(first).safety_logit, atol=1e-3)
    assert "has no safety head, a new one is drawn" in capsys.readouterr().err


def test_the_heads_stay_float32_over_a_half_precision_backbone(tiny_policy_path: Path, tmp_path: Path) -> None:
    model = start(tiny_policy_path, adapter=None)
    model.save(tmp_path / "c", load_tokenizer(tiny_policy_path))
    half = RewardModel.load(tmp_path / "c", dtype="bfloat16")
    assert half.model.base_model.norm.weight.dtype == torch.bfloat16
    assert half.model.score.weight.dtype == torch.float32
    assert torch.equal(half.model.score.weight, model.model.score.weight)


def test_two_labels_cannot_go_on(tiny_policy_path: Path, tmp_path: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_policy_path, num_labels=2)
    plain.save_pretrained(tmp_path / "two")
    load_tokenizer(tiny_policy_path).save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="has 2 labels, a reward model has 1"):
        start(tmp_path / "two")
