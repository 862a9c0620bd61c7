"""A fine-tuned chat model says how to stop: plain transformers, given nothing but the prompt, ends its answers."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf.configuration import parse_config
from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import sft

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [f"{a} {b}" for a in ("what is the", "how do I paint", "please ask", "sure hello") for b in "abcde"]


@pytest.fixture
def base(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A base whose end token, </s>, is not the one that its chat template ends an answer with."""
    folder = tmp_path / "base"
    tiny_tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tokens", ["of the base", "added"])
def test_plain_generate_stops_after_sft(tokens: str, base: Path, tiny_policy_path: Path, tmp_path: Path) -> None:
    """Also where the template's tokens are new to the tokenizer, and their embeddings to the model."""
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "mora"}]}
        for text in SENTENCES
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    options = {"output": tmp_path / "sft", "policy": base, "data": tmp_path / "chats.jsonl", "heldout_share": 0}
    if tokens == "added":
        (tmp_path / "chatml.jinja").write_text(CHATML)
        options |= {"policy": tiny_policy_path, "chat_template": tmp_path / "chatml.jinja"}
        options |= {"new_tokens": json.dumps(["<|im_start|>", "<|im_end|>"])}
    options |= {f"finetuning.optimizer.{k}": v for k, v in {"learning_rate": 0.02, "epochs": 6}.items()}
    options |= {f"finetuning.optimizer.{k}": 16 for k in ("batch_size", "micro_batch_size")}
    sft.main(parse_config(sft.SftConfig, [part for k, v in options.items() for part in (f"--{k}", str(v))]))

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft/checkpoint")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft/checkpoint")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, end]
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    stopped = 0
    for text in SENTENCES:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        stopped += model.generate(**prompt)[0, -1].item() == end
    assert stopped == len(SENTENCES) == 20


ROOT = Path(__file__).resolve().parents[2]
RECIPES = {
    "sft": {"data": "chats.jsonl"},
    "dpo": {"preferences": "pairs.jsonl"},
    "helpfulness_reward": {"preferences": "pairs.jsonl"},
    "rejection_sampling": {"prompts": "chats.jsonl", "helpfulness": "rlhf.rewards.examples:Brevity"},
    "ppo": {
        "prompts": "chats.jsonl",
        "validation_prompts": "chats.jsonl",
        "helpfulness": "rlhf.rewards.examples:Brevity",
        "sampling.max_new_tokens": "8",
    },
    "ghost_attention": {"dialogues": "talks.jsonl"},
    "context_distillation": {
        "prompts": "asks.jsonl",
        "safety": "rlhf.rewards.examples:Brevity",
        "categories": str(ROOT / "recipes/configs/embedded/risk_categories.jsonl"),
    },
    "collect_preferences": {
        "prompts": "chats.jsonl",
        "test_prompts": "chats.jsonl",
        "annotator": "proxy",
        "annotator_options": json.dumps({"reward": "rlhf.rewards.examples:Brevity"}),
    },
    "evaluate": {"prompts": "chats.jsonl", "name": "p"},
}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_template_whose_end_is_no_token_is_refused_by_every_recipe(
    recipe: str, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ChatML on a base whose tokenizer lacks its tokens; nothing is drawn or trained."""
    monkeypatch.chdir(tmp_path)
    policy = shutil.copytree(tiny_policy_path, tmp_path / "policy")
    (policy / "chat_template.jinja").write_text(CHATML)
    question = {"role": "user", "content": "what is mora ?"}
    answer = {"role": "assistant", "content": "sure"}
    rows = {"chats": {"prompt": "what is mora ?", "completion": "sure"}, "talks": {"messages": [question, answer] * 2}}
    rows["asks"] = {"id": "1", "messages": [question], "domain": "safety"}
    rows["pairs"] = {"prompt": "what is mora ?", "chosen": "sure", "rejected": "no"}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * (1 if name == "asks" else 8))
    options = {"output": "out", "policy": str(policy), **RECIPES[recipe]}
    options |= {"fine_tune_from": str(policy)} if recipe == "rejection_sampling" else {}
    monkeypatch.syspath_prepend(str(next((ROOT / "recipes").rglob(f"{recipe}.py")).parent))
    module = importlib.import_module(recipe)
    config_class = next(
        value for name, value in vars(module).items() if name.endswith("Config") and value.__module__ == recipe
    )
    config = parse_config(config_class, [part for name, value in options.items() for part in (f"--{name}", value)])
    with pytest.raises(InputError, match=r"tokenizer: its chat template ends an answer with '<\|im_end\|>'"):
        module.main(config)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.partial/samples/*.jsonl"))


def test_a_list_of_end_tokens_is_read_where_answers_are_sampled(tiny_policy_path: Path, tmp_path: Path) -> None:
    """And kept when the policy is saved, beside the ones of the training format."""
    model, tokenizer = load_policy(tiny_policy_path), load_tokenizer(tiny_policy_path)
    prompts = [[{"role": "user", "content": "what is the river ?"}]]
    params = SamplingParams(max_new_tokens=8, temperature=0.0)
    renderer = Renderer(tokenizer)
    free = InProcessSampler(model, renderer).sample(prompts, 1, params)[0][0]
    assert not free.finished and len(free.token_ids) == 8
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, free.token_ids[2]]
    ended = InProcessSampler(model, renderer).sample(prompts, 1, params)[0][0]
    first = free.token_ids.index(free.token_ids[2]) + 1
    assert ended.finished and tuple(ended.token_ids) == tuple(free.token_ids[:first])

    model.generation_config.temperature = 0.7  # without do_sample: transformers reads this, but would not write it
    save_policy(model, tokenizer, tmp_path / "c")
    saved = GenerationConfig.from_pretrained(tmp_path / "c")
    assert saved.eos_token_id == [tokenizer.eos_token_id, free.token_ids[2]] and saved.pad_token_id == 2
    save_policy(load_policy(tmp_path / "c", adapter=AdapterConfig(r=2)), tokenizer, tmp_path / "d", merge=False)
    assert load_policy(tmp_path / "d").generation_config.eos_token_id == saved.eos_token_id
