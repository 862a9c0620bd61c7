"""Checkpoints whose files are garbage, do not fit together, or do not end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from case import Case
from world import call

Damage = Callable[[Path], object]


def text(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def change(name: str, **changes: Any) -> Damage:
    """Other values in a JSON file; ... takes the key out."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8")) | changes
        kept = {key: value for key, value in found.items() if value is not ...}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return damage


def _without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _cut(name: str, keep: float = 0.5) -> Damage:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def _closed(name: str) -> Damage:
    return lambda folder: (folder / name).chmod(0o000)


def weights(**changes: Any) -> Damage:
    """Other tensors: a function of the tensor, or None to leave it out."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        for name, make in changes.items():
            found = [key for key in tensors if key.endswith(name.replace("__", "."))]
            for key in found:
                tensors[key] = make(tensors[key])
        save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, folder / "model.safetensors")

    return damage


def vocabulary(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(found)
        (folder / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")

    return damage


def _template(text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")

    return damage


DEEP = "[" * 3000 + "]" * 3000
GARBAGE: dict[str, str | bytes] = {
    "empty": "",
    "no object": "[1]",
    "bytes": bytes(range(256)),
    "cut off": '{"a": ',
    "deep": '{"a": ' + DEEP + "}",
    "digits": '{"vocab_size": ' + "9" * 6000 + "}",
    "half a character": '{"model_type": "\\ud83d"}',
    "an empty object": "{}",
    "a null": "null",
}
NO_CONTEXT = "0 and below say of no limit, as in models that have none"
NEXT_ID = "the tokenizer gives an added token the next free id"
CONFIGS: dict[str, tuple[Damage, str]] = {
    **{name: (text("config.json", content), "") for name, content in GARBAGE.items()},
    "missing": (_without("config.json"), ""),
    "a pipe": (pipe("config.json"), ""),
    "closed": (_closed("config.json"), ""),
    "no model_type": (change("config.json", model_type=...), ""),
    "an unknown model_type": (change("config.json", model_type="llama9"), ""),
    "a model_type that is a number": (change("config.json", model_type=3), ""),
    "another model_type": (change("config.json", model_type="gpt2"), ""),
    "fewer layers": (change("config.json", num_hidden_layers=1), ""),
    "more layers": (change("config.json", num_hidden_layers=3), ""),
    "layers as a text": (change("config.json", num_hidden_layers="two"), ""),
    "layers below 0": (change("config.json", num_hidden_layers=-1), ""),
    "another width": (change("config.json", hidden_size=48), ""),
    "heads that do not divide": (change("config.json", num_attention_heads=3), ""),
    "no heads": (change("config.json", num_attention_heads=0), ""),
    "a smaller vocabulary": (change("config.json", vocab_size=100), ""),
    "a larger vocabulary": (change("config.json", vocab_size=5000), ""),
    "an unknown activation": (change("config.json", hidden_act="wave"), ""),
    "an unknown dtype": (change("config.json", dtype="float99"), ""),
    "no context": (change("config.json", max_position_embeddings=0), NO_CONTEXT),
    "a context below 0": (change("config.json", max_position_embeddings=-5), NO_CONTEXT),
    "a context as a text": (change("config.json", max_position_embeddings="long"), ""),
    "a huge context": (
        change("config.json", max_position_embeddings=10**12),
        "a model may say so; nothing is made of that size",
    ),
    "a list for rope": (change("config.json", rope_parameters=[1]), ""),
    "an unknown rope": (change("config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}), ""),
    "pad out of range": (change("config.json", pad_token_id=9999), ""),
    "end as a text": (change("config.json", eos_token_id="stop"), ""),
    "code of its own": (change("config.json", auto_map={"AutoConfig": "evil.Config"}, model_type="evil"), ""),
    "quantised already": (change("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), ""),
    "quantised by nobody": (
        change("config.json", quantization_config={"quant_method": 7}),
        "weights that are stored whole are read whole",
    ),
}
TOKENIZERS: dict[str, tuple[Damage, str]] = {
    **{name: (text("tokenizer.json", content), "") for name, content in GARBAGE.items()},
    **{f"settings: {name}": (text("tokenizer_config.json", content), "") for name, content in GARBAGE.items()},
    "missing": (_without("tokenizer.json"), ""),
    "a pipe": (pipe("tokenizer.json"), ""),
    "closed": (_closed("tokenizer.json"), ""),
    "another algorithm": (vocabulary(lambda t: t["model"].update(type="Magic")), ""),
    "no model": (vocabulary(lambda t: t.pop("model")), ""),
    "merges of nothing": (vocabulary(lambda t: t["model"]["merges"].append(["xyzzy", "plugh"])), ""),
    "no vocabulary": (vocabulary(lambda t: t["model"].update(vocab={}, merges=[])), ""),
    "half a vocabulary": (
        vocabulary(
            lambda t: t["model"].update(vocab={k: v for k, v in t["model"]["vocab"].items() if v % 2}, merges=[])
        ),
        "what a vocabulary lacks is no token",
    ),
    "ids beyond the model's": (
        vocabulary(lambda t: t["model"].update(vocab={k: v + 1000 * (v > 3) for k, v in t["model"]["vocab"].items()})),
        "",
    ),
    "added ids beyond the model's": (
        vocabulary(lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": 90_000, "content": "<far>"})),
        NEXT_ID,
    ),
    "no end token": (change("tokenizer_config.json", eos_token=...), ""),
    "an unknown end token": (change("tokenizer_config.json", eos_token="<unheard-of>"), NEXT_ID),
    "an end token that is a number": (change("tokenizer_config.json", eos_token=7), ""),
    "an unknown class": (
        change("tokenizer_config.json", tokenizer_class="MagicTokenizer"),
        "tokenizer.json says all that the class would",
    ),
    "a class of its own": (
        change("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, tokenizer_class="T"),
        "",
    ),
    "a length that is a text": (change("tokenizer_config.json", model_max_length="long"), ""),
}
TEMPLATES = {
    "none": None,
    "empty": "",
    "not Jinja": "{% for",
    "an unknown tag": "{% dance %}",
    "an unknown filter": "{{ messages | dance }}",
    "an undefined name": "{{ nobody.home }}",
    "it raises": "{{ raise_exception('never') }}",
    "it says nothing": "{% if false %}{{ messages }}{% endif %}",
    "it leaves answers out": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "it changes answers": "{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}",
    "it turns them round": "{% for m in messages | reverse %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "a loop without end": "{% for i in range(1000000000) %}{% for j in range(1000000000) %}{% endfor %}{% endfor %}",
    "a long loop of text": "{% for i in range(100000000) %}x{% endfor %}",
    "a text without end": "{{ 'x' * 100000000000 }}",
    "a macro of itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "it includes a file": "{% include '/etc/passwd' %}",
    "it looks behind": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "it divides by 0": "{{ 1 / 0 }}",
    "it grows a list": "{% set l = [] %}{% for i in range(1000000000) %}{% set _ = l.append(l) %}{% endfor %}",
    "powers": "{{ 9 ** 9 ** 9 }}",
}
WEIGHTS: dict[str, Damage] = {
    "empty": text("model.safetensors", ""),
    "bytes": text("model.safetensors", bytes(range(256)) * 10),
    "cut off": _cut("model.safetensors"),
    "a header cut off": _cut("model.safetensors", 0.01),
    "a header without end": text("model.safetensors", b"\xff" * 8 + b"{}"),
    "no tensors": text("model.safetensors", b"\x08" + bytes(7) + b"{}      "),
    "missing": _without("model.safetensors"),
    "a pipe": pipe("model.safetensors"),
    "closed": _closed("model.safetensors"),
    "pickled": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "a part that is not there": text(
        "model.safetensors.index.json", json.dumps({"weight_map": {"a": "gone.safetensors"}})
    ),
    "NaN": weights(embed_tokens__weight=lambda t: t * float("nan")),
    "infinite": weights(embed_tokens__weight=lambda t: t + float("inf")),
    "another shape": weights(norm__weight=lambda t: t[:-1]),
    "a tensor less": weights(norm__weight=lambda t: None),
    "whole numbers": weights(norm__weight=lambda t: t.long()),
    "another dtype in one": weights(norm__weight=lambda t: t.half()),
}


TAKEN_WEIGHTS = {
    "a part that is not there": "an index beside whole weights is not read",
    "another dtype in one": "a weight is cast to the type that is asked for",
}


def unread(words: tuple[str, ...]) -> str:
    """Why a call takes damaged weights; "" where it reads them."""
    return "it reads no weights; what does, says so" if words[:2] in (("rlhf", "look"), ("rlhf", "new")) else ""


def in_folder(folder_name: str, damage: Damage) -> Damage:
    return lambda folder: damage(folder / folder_name)


READERS = (
    ("policy", call("sft")),
    ("policy", call("rejection_sampling", fine_tune_from="policy")),
    ("policy", call("ppo")),
    ("policy", call("evaluate")),
    ("policy", call("helpfulness_reward")),
    ("reward", call("evaluate")),
    ("reward", call("ppo")),
    ("policy", call("dpo")),
    ("policy", call("collect_preferences")),
    ("reward", ("rlhf", "verify-reward", "reward")),
    ("policy", ("rlhf", "look", "chats.jsonl", "--tokenizer", "policy")),
    ("policy", ("rlhf", "average", "policy", "other", "--output", "average")),
    ("policy", ("rlhf", "new", "made", "--chat", "policy", "--preferences", "pairs.jsonl")),
)


def cases() -> Iterator[Case]:
    """All of this file."""
    number = 0
    for kind, damages in (("config.json", CONFIGS), ("tokenizer.json", TOKENIZERS)):
        for name, (damage, reason) in damages.items():
            for turn in range(3):
                folder, words = READERS[(number + 4 * turn) % len(READERS)]
                title = f"{words[0]} {words[1] if words[0] == 'rlhf' else ''} {folder}: {name}"
                look_alone = kind == "config.json" and words[:2] == ("rlhf", "look")
                taken = reason or (unread(words) if look_alone or name == "quantised already" else "")
                yield Case(
                    kind, title, words, with_other(in_folder(folder, damage)), taken, obeys_modes=name == "closed"
                )
            number += 1
    for name, content in TEMPLATES.items():
        for turn in range(3):
            folder, words = READERS[(number + 5 * turn) % len(READERS)]
            title = f"{words[0]} {words[1] if words[0] == 'rlhf' else ''} {folder}: {name}"
            damage = _without("chat_template.jinja") if content is None else _template(content)
            yield Case("chat templates", title, words, with_other(in_folder(folder, damage)))
        number += 1
    for name, damage in WEIGHTS.items():
        for turn in range(3):
            folder, words = READERS[(number + 4 * turn) % len(READERS)]
            title = f"{words[0]} {words[1] if words[0] == 'rlhf' else ''} {folder}: {name}"
            reason = unread(words) or TAKEN_WEIGHTS.get(name, "")
            yield Case(
                "weights", title, words, with_other(in_folder(folder, damage)), reason, obeys_modes=name == "closed"
            )
        number += 1


def with_other(damage: Damage) -> Damage:
    """`rlhf average` needs a second checkpoint."""

    def prepare(folder: Path) -> None:
        import shutil

        shutil.copytree(folder / "policy", folder / "other")
        damage(folder)

    return prepare
