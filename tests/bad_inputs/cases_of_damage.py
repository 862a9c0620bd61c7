"""Checkpoints once more: settings of draws, adapters, and damage that is seen by another look than the first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Case
from cases_of_checkpoints import (
    GARBAGE,
    READERS,
    Damage,
    change,
    in_folder,
    pipe,
    text,
    unread,
    vocabulary,
    weights,
    with_other,
)
from world import call


def _folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def _circle(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(name)

    return damage


def _both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def _encoded(name: str, encoding: str) -> Damage:
    return lambda folder: (folder / name).write_text((folder / name).read_text(encoding="utf-8"), encoding=encoding)


def _index(**weight_map: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map), encoding="utf-8")

    return damage


def _renamed(prefix: str) -> Damage:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        save_file({prefix + name: t for name, t in tensors.items()}, folder / "model.safetensors")

    return damage


def _more(**tensors: Any) -> Damage:
    def damage(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        made = {name.replace("__", "."): make(torch) for name, make in tensors.items()}
        save_file({**load_file(folder / "model.safetensors"), **made}, folder / "model.safetensors")

    return damage


def _draws(**settings: Any) -> Damage:
    return text("generation_config.json", json.dumps(settings))


CONFIGS: dict[str, Damage] = {
    "weights no longer tied": change("config.json", tie_word_embeddings=False),
    "a bias that no weight has": change("config.json", attention_bias=True, mlp_bias=True),
    "keys that do not divide": change("config.json", num_key_value_heads=3),
    "heads of no width": change("config.json", head_dim=0),
    "a norm of words": change("config.json", rms_norm_eps="small"),
    "a norm of NaN": change("config.json", rms_norm_eps=float("nan")),
    "no activation": change("config.json", hidden_act=None),
    "a vocabulary of 300.5": change("config.json", vocab_size=300.5),
    "many ends, one beyond": change("config.json", eos_token_id=[1, 99_999]),
    "an end below 0": change("config.json", eos_token_id=-7),
    "a rope of words": change("config.json", rope_parameters={"rope_type": "default", "rope_theta": "big"}),
    "a rope of 0": change("config.json", rope_parameters={"rope_type": "default", "rope_theta": 0.0}),
    "a context of 1": change("config.json", max_position_embeddings=1),
    "an architecture that is a number": change("config.json", architectures=7),
    "another architecture": change("config.json", architectures=["BertModel"]),
    "a folder in its place": _folder("config.json"),
    "a link to itself": _circle("config.json"),
    "UTF-16": _encoded("config.json", "utf-16"),
    "quantised by a word": change("config.json", quantization_config="nf4"),
    "a dropout of 2": change("config.json", attention_dropout=2.0),
    "a spread of words": change("config.json", initializer_range="wide"),
}
GENERATION: dict[str, Damage] = {
    **{name: text("generation_config.json", content) for name, content in GARBAGE.items()},
    "a pipe": pipe("generation_config.json"),
    "an end beyond": _draws(eos_token_id=99_999),
    "an end as a text": _draws(eos_token_id="stop"),
    "a hot temperature": _draws(do_sample=True, temperature="hot"),
    "a temperature of NaN": _draws(do_sample=True, temperature=float("nan")),
    "a top-p of 7": _draws(do_sample=True, top_p=7),
    "a length below 0": _draws(max_length=-1),
}
TOKENIZERS: dict[str, Damage] = {
    "two words of one id": vocabulary(lambda t: t["model"]["vocab"].update({"velda!": 5})),
    "an id below 0": vocabulary(lambda t: t["model"]["vocab"].update({"velda!": -5})),
    "an id of words": vocabulary(lambda t: t["model"]["vocab"].update({"velda!": "five"})),
    "no decoder": vocabulary(lambda t: t.update(decoder=None)),
    "an unknown decoder": vocabulary(lambda t: t.update(decoder={"type": "Magic"})),
    "texts cut at 3": vocabulary(
        lambda t: t.update(truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0})
    ),
    "texts padded to 90": vocabulary(
        lambda t: t.update(
            padding={
                "strategy": {"Fixed": 90},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 2,
                "pad_type_id": 0,
                "pad_token": "<pad>",
            }
        )
    ),
    "all letters small": vocabulary(lambda t: t.update(normalizer={"type": "Lowercase"})),
    "a text thrown away": vocabulary(
        lambda t: t.update(normalizer={"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""})
    ),
    "added tokens as an object": vocabulary(lambda t: t.update(added_tokens={"a": 1})),
    "a space that is special": vocabulary(
        lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": 5, "content": " "})
    ),
    "an empty end token": change("tokenizer_config.json", eos_token=""),
    "an end token that is a word": change("tokenizer_config.json", eos_token="e"),
    "a list of end tokens": change("tokenizer_config.json", eos_token=["</s>", "<s>"]),
    "a pad token that is the end": change("tokenizer_config.json", pad_token="</s>"),
    "a template that is a number": _both(
        lambda folder: (folder / "chat_template.jinja").unlink(), change("tokenizer_config.json", chat_template=7)
    ),
    "a template of no name": _both(
        lambda folder: (folder / "chat_template.jinja").unlink(),
        change("tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "x"}]),
    ),
    "a template that is a folder": _folder("chat_template.jinja"),
    "a template that is no UTF-8": text("chat_template.jinja", b"\xff\xfe{{ messages }}"),
    "a template of 20 MB": text("chat_template.jinja", "{{ '" + "x" * 20_000_000 + "' }}"),
    "a length of NaN": change("tokenizer_config.json", model_max_length=float("nan")),
    "a longest text below 0": change("tokenizer_config.json", model_max_length=-4),
    "special tokens of numbers": change("tokenizer_config.json", extra_special_tokens=[1, 2]),
    "padding upwards": change("tokenizer_config.json", padding_side="up"),
    "a map of garbage": text("special_tokens_map.json", "{{{"),
    "added tokens of garbage": text("added_tokens.json", "[[["),
}
WEIGHTS: dict[str, Damage] = {
    "names with a prefix": _renamed("module."),
    "a folder in their place": _folder("model.safetensors"),
    "a link to themselves": _circle("model.safetensors"),
    "an index outside the folder": _index(weight_map={"a": "../../etc/passwd"}),
    "an index of numbers": _index(weight_map={"a": 7}),
    "an index of lists": _index(weight_map=[1]),
    "left-over adapters": _more(model__layers__0__self_attn__q_proj__lora_A__weight=lambda torch: torch.ones(2, 32)),
    "a head of a reward": _more(score__weight=lambda torch: torch.ones(1, 32)),
    "all zeros": weights(weight=lambda t: t * 0),
    "complex numbers": weights(norm__weight=lambda t: t.cfloat()),
    "no numbers in a tensor": weights(norm__weight=lambda t: t[:0]),
    "a tensor of more axes": weights(norm__weight=lambda t: t[None]),
    "huge numbers": weights(embed_tokens__weight=lambda t: t * 1e38),
}
ADAPTER: dict[str, Damage] = {
    **{name: text("adapter/adapter_config.json", content) for name, content in GARBAGE.items()},
    "a base that is gone": change("adapter/adapter_config.json", base_model_name_or_path="/nowhere"),
    "a base that is itself": lambda folder: change("adapter/adapter_config.json", base_model_name_or_path=str(folder))(
        folder
    ),
    "a base of another size": change("adapter/adapter_config.json", base_model_name_or_path="reward"),
    "no base": change("adapter/adapter_config.json", base_model_name_or_path=None),
    "no rank": change("adapter/adapter_config.json", r=0),
    "a rank of words": change("adapter/adapter_config.json", r="eight"),
    "another rank": change("adapter/adapter_config.json", r=4),
    "an alpha of NaN": change("adapter/adapter_config.json", lora_alpha=float("nan")),
    "another kind": change("adapter/adapter_config.json", peft_type="MAGIC"),
    "no kind": change("adapter/adapter_config.json", peft_type=...),
    "layers that are not there": change("adapter/adapter_config.json", target_modules=["magic_proj"]),
    "a pattern that is none": change("adapter/adapter_config.json", target_modules="(("),
    "an unknown quantisation": text("adapter/base.json", '{"quantization": "int3"}'),
    "base.json of garbage": text("adapter/base.json", "{"),
    "weights that are empty": text("adapter/adapter_model.safetensors", ""),
    "a pipe for weights": pipe("adapter/adapter_model.safetensors"),
    "no weights": lambda folder: (folder / "adapter" / "adapter_model.safetensors").unlink(),
}
ADAPTER_READERS = (
    call("evaluate", policy="lora"),
    call("sft", policy="lora"),
    call("dpo", policy="lora"),
    call("collect_preferences", policy="lora"),
    ("merge_adapter", "--output", "out", "--checkpoint", "lora", "--merge", "simple"),
    ("rlhf", "chat", "lora"),
)
NEVER = "no answer ends by it; those of the template and of the tokenizer count"
TASTE = "no draw here reads it; it is a taste of other programs"
NO_LIMIT = "a length that is none says of no limit"
ANEW = "how texts are cut and padded is said anew at every call"
REASONS = {
    "weights no longer tied": "a reward model has no words to write",
    **dict.fromkeys(("many ends, one beyond", "an end below 0", "an end beyond"), NEVER),
    **dict.fromkeys(("an architecture that is a number", "another architecture"), "the model_type decides"),
    "a dropout of 2": "nothing that is run drops out",
    **dict.fromkeys(("half a character", "an empty object"), "an object that names nothing is as none"),
    **dict.fromkeys(("a hot temperature", "a temperature of NaN", "a top-p of 7", "a length below 0"), TASTE),
    "two words of one id": "a vocabulary may have two names for a token",
    **dict.fromkeys(("texts cut at 3", "texts padded to 90"), ANEW),
    "all letters small": "a tokenizer may know no capitals",
    "a text thrown away": "an average reads no text",
    "a pad token that is the end": "another pad token is added",
    **dict.fromkeys(("a length of NaN", "a longest text below 0"), NO_LIMIT),
    "all zeros": "zeros are numbers",
    "huge numbers": "a step whose gradient is not finite is left out, and said",
    "a head of a reward": "a reward model has one",
}


def _adapter(folder: Path) -> None:
    """Write `lora`, a checkpoint whose adapter lies over `policy`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    lora.save_pretrained(folder / "lora" / "adapter")
    change("adapter/adapter_config.json", base_model_name_or_path=str(folder / "policy"))(folder / "lora")
    text("adapter/base.json", '{"quantization": null}')(folder / "lora")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "lora")


def cases() -> Iterator[Case]:
    """All of this file."""
    number = 0
    kinds = (
        ("config.json", CONFIGS),
        ("generation_config.json", GENERATION),
        ("tokenizer.json", TOKENIZERS),
        ("weights", WEIGHTS),
    )
    for kind, damages in kinds:
        for name, damage in damages.items():
            for turn in range(2):
                folder, words = READERS[(number + 5 * turn) % len(READERS)]
                title = f"{words[0]} {words[1] if words[0] == 'rlhf' else ''} {folder}: {name}"
                taken = REASONS.get(name, "") or ("" if kind == "tokenizer.json" else unread(words))
                yield Case(kind, title, words, with_other(in_folder(folder, damage)), taken)
            number += 1
    for name, damage in ADAPTER.items():
        words = ADAPTER_READERS[number % len(ADAPTER_READERS)]
        title = f"{words[0]} {words[1] if words[0] == 'rlhf' else ''} {name}"
        prepare = lambda folder, damage=damage: (_adapter(folder), damage(folder / "lora"))  # noqa: E731
        yield Case("adapters", title, words, prepare)
        number += 1
