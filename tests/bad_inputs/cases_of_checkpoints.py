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


def _text(name: str, text: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def _change(name: str, **changes: Any) -> Damage:
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


def _pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def _closed(name: str) -> Damage:
    return lambda folder: (folder / name).chmod(0o000)


def _weights(**changes: Any) -> Damage:
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


def _vocabulary(change: Callable[[dict[str, Any]], object]) -> Damage:
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
    **{name: (_text("config.json", text), "") for name, text in GARBAGE.items()},
    "missing": (_without("config.json"), ""),
    "a pipe": (_pipe("config.json"), ""),
    "closed": (_closed("config.json"), ""),
    "no model_type": (_change("config.json", model_type=...), ""),
    "an unknown model_type": (_change("config.json", model_type="llama9"), ""),
    "a model_type that is a number": (_change("config.json", model_type=3), ""),
    "another model_type": (_change("config.json", model_type="gpt2"), ""),
    "fewer layers": (_change("config.json", num_hidden_layers=1), ""),
    "more layers": (_change("config.json", num_hidden_layers=3), ""),
    "layers as a text": (_change("config.json", num_hidden_layers="two"), ""),
    "layers below 0": (_change("config.json", num_hidden_layers=-1), ""),
    "another width": (_change("config.json", hidden_size=48), ""),
    "heads that do not divide": (_change("config.json", num_attention_heads=3), ""),
    "no heads": (_change("config.json", num_attention_heads=0), ""),
    "a smaller vocabulary": (_change("config.json", vocab_size=100), ""),
    "a larger vocabulary": (_change("config.json", vocab_size=5000), ""),
    "an unknown activation": (_change("config.json", hidden_act="wave"), ""),
    "an unknown dtype": (_change("config.json", dtype="float99"), ""),
    "no context": (_change("config.json", max_position_embeddings=0), NO_CONTEXT),
    "a context below 0": (_change("config.json", max_position_embeddings=-5), NO_CONTEXT),
    "a context as a text": (_change("config.json", max_position_embeddings="long"), ""),
    "a huge context": (
        _change("config.json", max_position_embeddings=10**12),
        "a model may say so; nothing is made of that size",
    ),
    "a list for rope": (_change("config.json", rope_parameters=[1]), ""),
    "an unknown rope": (_change("config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}), ""),
    "pad out of range": (_change("config.json", pad_token_id=9999), ""),
    "end as a text": (_change("config.json", eos_token_id="stop"), ""),
    "code of its own": (_change("config.json", auto_map={"AutoConfig": "evil.Config"}, model_type="evil"), ""),
    "quantised already": (_change("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), ""),
    "quantised by nobody": (
        _change("config.json", quantization_config={"quant_method": 7}),
        "weights that are stored whole are read whole",
    ),
}
TOKENIZERS: dict[str, tuple[Damage, str]] = {
    **{name: (_text("tokenizer.json", text), "") for name, text in GARBAGE.items()},
    **{f"settings: {name}": (_text("tokenizer_config.json", text), "") for name, text in GARBAGE.items()},
    "missing": (_without("tokenizer.json"), ""),
    "a pipe": (_pipe("tokenizer.json"), ""),
    "closed": (_closed("tokenizer.json"), ""),
    "another algorithm": (_vocabulary(lambda t: t["model"].update(type="Magic")), ""),
    "no model": (_vocabulary(lambda t: t.pop("model")), ""),
    "merges of nothing": (_vocabulary(lambda t: t["model"]["merges"].append(["xyzzy", "plugh"])), ""),
    "no vocabulary": (_vocabulary(lambda t: t["model"].update(vocab={}, merges=[])), ""),
    "half a vocabulary": (
        _vocabulary(
            lambda t: t["model"].update(vocab={k: v for k, v in t["model"]["vocab"].items() if v % 2}, merges=[])
        ),
        "what a vocabulary lacks is no token",
    ),
    "ids beyond the model's": (
        _vocabulary(lambda t: t["model"].update(vocab={k: v + 1000 * (v > 3) for k, v in t["model"]["vocab"].items()})),
        "",
    ),
    "added ids beyond the model's": (
        _vocabulary(lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": 90_000, "content": "<far>"})),
        NEXT_ID,
    ),
    "no end token": (_change("tokenizer_config.json", eos_token=...), ""),
    "an unknown end token": (_change("tokenizer_config.json", eos_token="<unheard-of>"), NEXT_ID),
    "an end token that is a number": (_change("tokenizer_config.json", eos_token=7), ""),
    "an unknown class": (
        _change("tokenizer_config.json", tokenizer_class="MagicTokenizer"),
        "tokenizer.json says all that the class would",
    ),
    "a class of its own": (
        _change("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, tokenizer_class="T"),
        "",
    ),
    "a length that is a text": (_change("tokenizer_config.json", model_max_length="long"), ""),
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
    "empty": _text("model.safetensors", ""),
    "bytes": _text("model.safetensors", bytes(range(256)) * 10),
    "cut off": _cut("model.safetensors"),
    "a header cut off": _cut("model.safetensors", 0.01),
    "a header without end": _text("model.safetensors", b"\xff" * 8 + b"{}"),
    "no tensors": _text("model.safetensors", b"\x08" + bytes(7) + b"{}      "),
    "missing": _without("model.safetensors"),
    "a pipe": _pipe("model.safetensors"),
    "closed": _closed("model.safetensors"),
    "pickled": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "a part that is not there": _text(
        "model.safetensors.index.json", json.dumps({"weight_map": {"a": "gone.safetensors"}})
    ),
    "NaN": _weights(embed_tokens__weight=lambda t: t * float("nan")),
    "infinite": _weights(embed_tokens__weight=lambda t: t + float("inf")),
    "another shape": _weights(norm__weight=lambda t: t[:-1]),
    "a tensor less": _weights(norm__weight=lambda t: None),
    "whole numbers": _weights(norm__weight=lambda t: t.long()),
    "another dtype in one": _weights(norm__weight=lambda t: t.half()),
}


TAKEN_WEIGHTS = {
    "a part that is not there": "an index beside whole weights is not read",
    "another dtype in one": "a weight is cast to the type that is asked for",
}


def _unread(words: tuple[str, ...]) -> str:
    """Why a call takes damaged weights; "" where it reads them."""
    return "it reads no weights; what does, says so" if words[:2] in (("rlhf", "look"), ("rlhf", "new")) else ""


def _in(folder_name: str, damage: Damage) -> Damage:
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
                taken = reason or (_unread(words) if look_alone or name == "quantised already" else "")
                yield Case(kind, title, words, _with_other(_in(folder, damage)), taken, obeys_modes=name == "closed")
            number += 1
    for name, text in TEMPLATES.items():
        for turn in range(3):
            folder, words = READERS[(number + 5 * turn) % len(READERS)]
            title = f"{words[0]} {words[1] if words[0] == 'rlhf' else ''} {folder}: {name}"
            damage = _without("chat_template.jinja") if text is None else _template(text)
            yield Case("chat templates", title, words, _with_other(_in(folder, damage)))
        number += 1
    for name, damage in WEIGHTS.items():
        for turn in range(3):
            folder, words = READERS[(number + 4 * turn) % len(READERS)]
            title = f"{words[0]} {words[1] if words[0] == 'rlhf' else ''} {folder}: {name}"
            reason = _unread(words) or TAKEN_WEIGHTS.get(name, "")
            yield Case("weights", title, words, _with_other(_in(folder, damage)), reason, obeys_modes=name == "closed")
        number += 1


def _with_other(damage: Damage) -> Damage:
    """`rlhf average` needs a second checkpoint."""

    def prepare(folder: Path) -> None:
        import shutil

        shutil.copytree(folder / "policy", folder / "other")
        damage(folder)

    return prepare
