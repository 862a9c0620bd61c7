"""What `rlhf new` takes as its model: a folder, a hub name, a GGUF file, an adapter, a base with dialogues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import Tensor

from rlhf.configuration import parse_config
from rlhf.data.fields import DataSource
from rlhf.errors import InputError
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.plan import PlannedStage, make_plan
from rlhf.models.checkpoint.fields import Checkpoint, TrainedCheckpoint
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.rewards.specs import Reward, read_ensemble
from rlhf.sampling.source import PolicySource, TokenizedPolicy
from rlhf.stage import inputs_of
from rlhf.stage.card import read_metadata
from rlhf.start.given import FOLDER
from rlhf.start.machine import Machine
from rlhf.start.new import Request, new_run

MACHINE = Machine(2, 24.0)
HUB = "someone/tiny_chat"


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows of one kind into a file of that name."""

    def write(name: str, row: Callable[[str], dict[str, Any]]) -> str:
        questions = [f"{'abcdefghijklmnopqrst'[i % 20]} {i} ?" for i in range(40)]
        (tmp_path / name).write_text("".join(json.dumps(row(question)) + "\n" for question in questions))
        return str(tmp_path / name)

    return write


@pytest.fixture
def pairs(rows: Callable[..., str]) -> str:
    return rows("pairs.jsonl", lambda question: {"prompt": question, "chosen": "sure .", "rejected": "no"})


@pytest.fixture
def hub(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of its own, with HUB as `hf download` leaves it; the folder in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / f"models--{HUB.replace('/', '--')}"
    folder: Path = repository / "snapshots" / "abc123"
    shutil.copytree(tiny_policy_path, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    return folder


def planned(run: Path) -> dict[str, PlannedStage]:
    stages = make_plan(parse_config(IterativeConfig, ["--config", str(run / "plan.yaml")]))
    check_plan(stages)
    return {stage.name: stage for stage in stages}


def logits(model: Any) -> Tensor:
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits  # type: ignore[no-any-return]


def test_a_hub_name_is_the_folder_in_the_hub_s_cache(hub: Path, pairs: str, tmp_path: Path) -> None:
    new_run(Request(tmp_path / "run", Path(HUB), helpfulness_preferences=(pairs,)), MACHINE)
    by_name = planned(tmp_path / "run")
    assert by_name["v1/rejection_sampling"].overrides["policy"] == str(hub)
    assert hub in by_name["v1/rejection_sampling"].inputs, "its content decides whether a stage runs again"
    assert not (tmp_path / "run" / FOLDER).exists(), "nothing is copied"
    plan = tmp_path / "run" / "plan.yaml"
    plan.write_text(plan.read_text().replace(str(hub), HUB))  # as one writes it by hand
    assert planned(tmp_path / "run")["v1/rejection_sampling"].overrides["policy"] == str(hub)
    plan.write_text(plan.read_text().replace(HUB, "someone/else"))
    with pytest.raises(InputError, match=r"someone/else does not exist; .*hf download someone/else"):
        planned(tmp_path / "run")


@dataclass(frozen=True)
class Named:
    """All the ways in which a recipe names models.

    Args:
        policy, models: answer.
        start, members: are trained, averaged.
        reward: scores.
        data: rows, whose hub names stay.
    """

    policy: TokenizedPolicy
    models: dict[str, PolicySource]
    start: TrainedCheckpoint
    members: tuple[Checkpoint, ...]
    reward: Reward
    data: DataSource


def test_a_hub_name_is_that_folder_in_every_recipe(hub: Path, tmp_path: Path) -> None:
    """Before, a recipe that was run by hand wanted a folder, where `rlhf new` took the name."""
    named = {"policy": HUB, "models": {"mine": HUB}, "start": HUB, "members": [HUB, "no/such"], "reward": HUB}
    (tmp_path / "named.yaml").write_text(json.dumps(named | {"data": HUB}))
    config = parse_config(Named, ["--config", str(tmp_path / "named.yaml")])
    assert config.policy.checkpoint == config.models["mine"].checkpoint == config.start == hub
    assert config.members == (hub, Path("no/such")) and config.reward == str(hub) and config.data == HUB
    with pytest.raises(InputError, match=r"members.1: no/such does not exist; .* by `hf download no/such`, then give"):
        inputs_of(config)
    (tmp_path / "both.yaml").write_text(json.dumps({"members": [HUB, "rlhf.rewards.examples:Brevity"]}))
    assert read_ensemble(tmp_path / "both.yaml").members[0] == str(hub)


def test_a_reward_model_of_the_hub_s(hub: Path, tiny_policy_path: Path, pairs: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    reward = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(hub, num_labels=1))
    (hub / "model.safetensors").unlink()
    reward.save_pretrained(hub)
    new_run(Request(tmp_path / "run", tiny_policy_path, prompts=(pairs,), helpfulness=HUB, ppo=False), MACHINE)
    stage = planned(tmp_path / "run")["v1/rejection_sampling"]
    assert stage.overrides["helpfulness"] == str(hub) and hub in stage.inputs
    with pytest.raises(InputError, match=r"reward: someone/else does not exist; .*hf download someone/else"):
        new_run(Request(tmp_path / "no", tiny_policy_path, prompts=(pairs,), helpfulness="someone/else"), MACHINE)
    plan = tmp_path / "run" / "plan.yaml"
    plan.write_text(plan.read_text().replace(str(hub), "rewards/nowhere"))
    with pytest.raises(InputError, match="v1/rejection_sampling: rewards/nowhere does not exist"):
        planned(tmp_path / "run")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (
            "someone/else",
            "chat: someone/else is not a folder, and no model in the hub's cache here; fetch it by `hf download",
        ),
        ("nowhere", "nowhere is not a folder"),
        ("pairs.jsonl", "is a file, and no GGUF; name the folder of a checkpoint"),
        ("ggufs", "chat: ggufs holds GGUF files; name one of them, such as ggufs/a.gguf"),
        ("broken.gguf", "broken.gguf cannot be loaded"),
    ],
)
def test_what_is_no_model_is_one_sentence_and_writes_nothing(
    named: str, words: str, hub: Path, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ggufs").mkdir()
    for file in ("ggufs/a.gguf", "broken.gguf"):
        Path(file).write_bytes(b"GGUF\x03\x00")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words) as refused:
        new_run(Request(Path("run"), Path(named), helpfulness_preferences=(pairs,)), MACHINE)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_gguf_file_is_written_out_once(tiny_policy_path: Path, pairs: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny-F32.gguf"
    write_gguf(tiny_policy_path, file)
    (said, *_) = new_run(Request(tmp_path / "run", file, helpfulness_preferences=(pairs,)), MACHINE)
    chat = tmp_path / "run" / FOLDER
    assert str(chat) in said and "tiny-F32.gguf in bfloat16" in said
    assert planned(tmp_path / "run")["v1/rejection_sampling"].overrides["policy"] == str(chat)
    found, held = logits(load_policy(chat)), logits(load_policy(tiny_policy_path))
    torch.testing.assert_close(found[..., : held.shape[-1]], held, atol=1e-2, rtol=1e-2)
    asked = [{"role": "user", "content": "what is mora ?"}]
    ours, theirs = (load_tokenizer(path).apply_chat_template(asked) for path in (chat, tiny_policy_path))
    assert ours["input_ids"] == theirs["input_ids"]


def test_a_gguf_file_without_its_package(tmp_path: Path, pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF\x03\x00")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError,
        match=r"gguf: .*tiny.gguf is read by the package gguf, not installed here; install with `pip install gguf`",
    ):
        new_run(Request(tmp_path / "run", tmp_path / "tiny.gguf", helpfulness_preferences=(pairs,)), MACHINE)


@pytest.mark.parametrize("by_hub_name", [False, True], ids=["base in a folder", "base by hub name"])
def test_an_adapter_that_peft_wrote_is_merged_into_its_base(
    by_hub_name: bool, hub: Path, tiny_policy_path: Path, pairs: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    lora = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_policy(tiny_policy_path), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.eval().save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    base = HUB if by_hub_name else str(tiny_policy_path)
    content = json.loads(settings.read_text()) | {"base_model_name_or_path": base}
    settings.write_text(json.dumps(content))
    request = Request(tmp_path / "run", tmp_path / "adapter", helpfulness_preferences=(pairs,))
    (said, *_) = new_run(request, MACHINE)
    chat = tmp_path / "run" / FOLDER
    assert f"{chat}: the adapter of {tmp_path / 'adapter'}, merged into" in said
    assert planned(tmp_path / "run")["v1/rejection_sampling"].overrides["policy"] == str(chat)
    merged = load_policy(chat)
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(logits(merged), logits(model))
    assert not torch.allclose(logits(merged), logits(load_policy(tiny_policy_path)), atol=1e-3)
    assert read_metadata(chat).get("base_model") == ([HUB] if by_hub_name else None)
    assert str(tmp_path) not in (chat / "README.md").read_text(), "no folder of this machine"
    settings.write_text(json.dumps(content | {"use_dora": True}))
    with pytest.raises(InputError, match="has use_dora True, which is not merged here; merge it by peft's"):
        new_run(Request(tmp_path / "other", tmp_path / "adapter", helpfulness_preferences=(pairs,)), MACHINE)
    settings.write_text(json.dumps(content | {"base_model_name_or_path": "someone/else"}))
    with pytest.raises(InputError, match=r"an adapter over someone/else, .* fetch it from the hub by `hf download"):
        new_run(Request(tmp_path / "other", tmp_path / "adapter", helpfulness_preferences=(pairs,)), MACHINE)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_an_adapter_of_ours_is_merged_too(
    tiny_policy_path: Path, pairs: str, tmp_path: Path, quantization: Literal["nf4"] | None
) -> None:
    """One over 4 bit into what 4 bit holds, the careful way: into the whole weights it would be another model."""
    if quantization is not None:
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(2)
    size = AdapterConfig(r=2, alpha=4, merge=False)
    model = load_policy(tiny_policy_path, adapter=size, quantization=quantization)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_policy(model.eval(), load_tokenizer(tiny_policy_path), tmp_path / "sft" / "checkpoint", merge=False)
    new_run(Request(tmp_path / "run", tmp_path / "sft" / "checkpoint", helpfulness_preferences=(pairs,)), MACHINE)
    off = (logits(load_policy(tmp_path / "run" / FOLDER)) - logits(model)).norm() / logits(model).norm()
    assert off < (1e-5 if quantization is None else 1e-2)
    assert planned(tmp_path / "run")["v1/rejection_sampling"].overrides["policy"] == str(tmp_path / "run" / FOLDER)


def test_a_base_model_and_dialogues(hub: Path, pairs: str, rows: Callable[..., str], tmp_path: Path) -> None:
    chats = rows("chats.jsonl", lambda question: {"prompt": question, "completion": "sure it is mora ."})
    for file in hub.glob("chat_template*"):
        file.unlink()
    request = {"base": Path(HUB), "helpfulness_preferences": (pairs,), "referee_preferences": (pairs,)}
    new_run(Request(tmp_path / "run", sft=(chats,), **request), MACHINE)  # type: ignore[arg-type]
    by_name = planned(tmp_path / "run")
    assert list(by_name)[:3] == ["data", "sft", "referee_reward"]
    assert {stage.launch.processes for name, stage in by_name.items() if name != "data"} == {MACHINE.slots}, "all cores"
    plan = yaml.safe_load((tmp_path / "run" / "plan.yaml").read_text())
    assert plan["launch"]["default"] == {"retries": 1}, "a step of one's own may run in one process only"
    assert by_name["sft"].overrides["policy"] == str(hub) and by_name["sft"].overrides["data"] == json.dumps([chats])
    assert by_name["v1/rejection_sampling"].overrides["fine_tune_from"] == str(tmp_path / "run" / "sft" / "checkpoint")
    settings = yaml.safe_load((tmp_path / "run" / "config" / "sft.yaml").read_text())
    assert settings["chat_template"] == "llama2"
    with pytest.raises(InputError, match=r"chat: .*abc123 has no chat template, .* --base .*abc123 --sft FILE"):
        new_run(Request(tmp_path / "other", Path(HUB), helpfulness_preferences=(pairs,)), MACHINE)
    with pytest.raises(InputError, match=r"sft: dialogues .* name both or neither"):
        Request(tmp_path / "other", **request)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="chat: name a chat model"):
        Request(tmp_path / "other", Path(HUB), sft=(chats,), **request)  # type: ignore[arg-type]


def write_gguf(checkpoint: Path, file: Path) -> None:
    """A Llama checkpoint as llama.cpp's converter writes it, in float32."""
    from gguf import GGUFWriter, TokenType

    config, model = json.loads((checkpoint / "config.json").read_text()), load_policy(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    bpe = json.loads((checkpoint / "tokenizer.json").read_text())["model"]
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_list(vocabulary)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.": "blk.",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        values = weight.float().numpy()
        if (kind := name[-13:-12] if name.endswith("_proj.weight") else "") in heads and "self_attn" in name:
            split = values.reshape(heads[kind], 2, values.shape[0] // heads[kind] // 2, -1)
            values = split.swapaxes(1, 2).reshape(values.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
