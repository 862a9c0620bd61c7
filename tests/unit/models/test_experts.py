"""Adapters and 4 bit on experts fused into one tensor, and on a model with linear layers of its own kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DeepseekV3Config,
    FalconConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from rlhf.errors import InputError
from rlhf.models.checkpoint.saving import probe_logits, probe_scores
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"max_position_embeddings": 64, "vocab_size": 300}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16}
CONFIGS: dict[str, Any] = {
    "mixtral": lambda: MixtralConfig(**SIZE, num_key_value_heads=1, num_local_experts=4),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZE, **EXPERTS, num_key_value_heads=1),
    "qwen3_next": lambda: Qwen3NextConfig(
        **SIZE,
        **EXPERTS,
        num_key_value_heads=1,
        shared_expert_intermediate_size=24,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **SIZE,
        num_key_value_heads=2,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        n_shared_experts=1,
    ),
    "falcon": lambda: FalconConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, bos_token_id=0, eos_token_id=1
    ),
}
ADAPTER = AdapterConfig(r=2, alpha=8, dropout=0.0)


def made(name: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "qwen3_next", "deepseek_v3"])
def test_an_adapter_on_fused_experts_is_merged_into_them(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What plain transformers loads is the model in memory, and has the names that the base has on disk."""
    base = made(name, tiny_tokenizer, tmp_path / "base")
    before = probe_logits(load_policy(base))
    model = trained(load_policy(base, adapter=ADAPTER))
    assert "adapter: a LoRA adapter reaches" in capsys.readouterr().err
    assert any("experts" in n for n, p in model.named_parameters() if p.requires_grad)
    save_policy(model, load_tokenizer(base), tmp_path / "c")
    want, got = probe_logits(model), probe_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "c"))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert (want - before).abs().max() > 0.1

    save_policy(model, load_tokenizer(base), tmp_path / "alone", merge=False)
    torch.testing.assert_close(probe_logits(load_policy(tmp_path / "alone")), want, atol=1e-5, rtol=1e-5)


def test_a_reward_model_s_adapter_on_fused_experts(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = made("qwen3_moe", tiny_tokenizer, tmp_path / "base")
    reward = trained(RewardModel.from_policy(base, safety_head=True, seed=0, adapter=ADAPTER))
    want = probe_scores(reward.model)
    reward.save(tmp_path / "c", load_tokenizer(base))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    torch.testing.assert_close(probe_scores(plain), want, atol=1e-4, rtol=1e-4)
    reward.save(tmp_path / "alone", load_tokenizer(base), merge=False)
    torch.testing.assert_close(probe_scores(RewardModel.load(tmp_path / "alone").model), want, atol=1e-4, rtol=1e-4)


def test_dropout_on_fused_experts_is_refused_before_training(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = made("mixtral", tiny_tokenizer, tmp_path / "base")
    sentence = r"adapter\.dropout: this model's experts are fused into one tensor, .* set adapter\.dropout to 0"
    with pytest.raises(InputError, match=sentence):
        load_policy(base, adapter=AdapterConfig(r=2))
    with pytest.raises(InputError, match=sentence):
        RewardModel.from_policy(base, safety_head=False, seed=0, adapter=AdapterConfig(r=2))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "falcon"])
def test_4_bit_that_reaches_the_lesser_part_is_refused(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    base = made(name, tiny_tokenizer, tmp_path / "base")
    for load in (
        lambda: load_policy(base, adapter=ADAPTER, quantization="nf4"),
        lambda: RewardModel.from_policy(base, safety_head=False, seed=0, adapter=ADAPTER, quantization="nf4"),
    ):
        with pytest.raises(
            InputError, match=r"quantization: nf4 reaches [\d,]+ of [\d,]+ weights, \d+% .* leave quant"
        ):
            load()


def test_what_4_bit_and_an_adapter_reach_is_said(tiny_policy_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes")
    load_policy(tiny_policy_path, adapter=ADAPTER, quantization="nf4")
    said = capsys.readouterr().err
    # per layer: q and o 32 x 32, k and v 16 x 32, three of 64 x 32 in the feed-forward
    weights = f"{2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32):,}"
    assert f"quantization: nf4 reaches {weights} of {weights} weights, 100%" in said
    assert f"adapter: a LoRA adapter reaches {weights} of {weights} weights, 100%" in said
