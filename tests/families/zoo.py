"""A tiny random model of every family: two layers, width 32, three hundred tokens, made in code, never fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY = 304  # the tokenizer's 300, and the marks of pictures
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SIZE, "num_key_value_heads": 1}
HEADS = {**GROUPED, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def _of(name: str, *settings: Mapping[str, Any], **more: Any) -> Callable[[], Any]:
    """A config class of transformers, called when the model is made."""

    def make() -> Any:
        merged: dict[str, Any] = {}
        for part in (*settings, more):
            merged |= part
        return getattr(transformers, name)(**merged)

    return make


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _of("LlamaConfig", GROUPED),
    "mistral": _of("MistralConfig", HEADS, sliding_window=8),
    "mixtral": _of("MixtralConfig", GROUPED, num_local_experts=4),
    "qwen2": _of("Qwen2Config", GROUPED),
    "qwen3": _of("Qwen3Config", HEADS),
    "qwen3_moe": _of("Qwen3MoeConfig", HEADS, EXPERTS),
    "qwen3_next": _of("Qwen3NextConfig", HEADS, EXPERTS, LINEAR, shared_expert_intermediate_size=24),
    "qwen3_5": _of(
        "Qwen3_5Config",
        text_config={**HEADS, **LINEAR},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
        },
        image_token_id=300,
        video_token_id=301,
        vision_start_token_id=302,
        vision_end_token_id=303,
    ),
    "gemma2": _of("Gemma2Config", HEADS, sliding_window=8),
    "gemma3_text": _of(
        "Gemma3TextConfig", HEADS, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "gemma3": _of(
        "Gemma3Config",
        text_config={**HEADS, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**VISION, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=300,
        boi_token_index=301,
        eoi_token_index=302,
        eos_token_id=1,
    ),
    "phi3": _of("Phi3Config", GROUPED),
    "olmo2": _of("Olmo2Config", GROUPED),
    "granite": _of("GraniteConfig", GROUPED),
    "gpt2": _of("GPT2Config", GPT2, ENDS),
    "gpt_bigcode": _of("GPTBigCodeConfig", GPT2, ENDS),
    "gpt_neox": _of("GPTNeoXConfig", SIZE),
    "opt": _of(
        "OPTConfig",
        ENDS,
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    ),
    "falcon": _of(
        "FalconConfig", ENDS, vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    ),
    "bloom": _of("BloomConfig", ENDS, vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2),
    "mamba": _of("MambaConfig", ENDS, vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2),
    "mamba2": _of(
        "Mamba2Config",
        ENDS,
        vocab_size=VOCABULARY,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=16,
    ),
    "falcon_h1": _of(
        "FalconH1Config",
        HEADS,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=16,
    ),
    "gpt_oss": _of("GptOssConfig", HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "deepseek_v3": _of(
        "DeepseekV3Config",
        SIZE,
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
    "llama4_text": _of(
        "Llama4TextConfig",
        HEADS,
        intermediate_size_mlp=48,
        num_local_experts=4,
        num_experts_per_tok=1,
        moe_layers=[1],
        attention_chunk_size=64,
        no_rope_layers=[1, 0],
    ),
    "smollm3": _of("SmolLM3Config", GROUPED),
    "lfm2": _of("Lfm2Config", GROUPED, full_attn_idxs=[1], block_auto_adjust_ff_dim=False),
    "cohere2": _of("Cohere2Config", GROUPED, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
}
"""Name -> config, by the name that stands in config.json (`model_type`)."""


def make(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A checkpoint of the family as the hub has it: a model that sees pictures too is saved whole."""
    torch.manual_seed(0)
    config = FAMILIES[name]()
    whole = hasattr(config, "vision_config")
    auto = transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
