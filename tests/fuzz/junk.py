"""What people (and cats on keyboards) write where a value, a file or an option is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SETTINGS = settings(
    derandomize=True,  # the same examples on every run
    deadline=20_000,  # milliseconds an example, the first with its imports
    max_examples=150,
    database=None,
    suppress_health_check=list(HealthCheck),
)

DEEP = "[" * 3000 + "]" * 3000
FILES: dict[str, bytes] = {
    "empty.jsonl": b"",
    "garbage.jsonl": bytes(range(256)),
    "numbers.jsonl": b"1\n2\n",
    "strings.jsonl": b'"a"\n',
    "lists.jsonl": b"[[1], []]\n",
    "nulls.jsonl": b"null\n",
    "surrogate.jsonl": b'{"messages": [{"role": "user", "content": "\\ud83d"}], "chosen": "\\ud83d", "rejected": "b"}\n',
    "digits.jsonl": b'{"messages": ' + b"9" * 6000 + b"}\n",
    "deep.jsonl": b'{"messages": ' + DEEP.encode() + b"}\n",
    "odd.jsonl": b'{"messages": {"role": "user"}, "chosen": 3, "rejected": [], "domain": {}, "strength": 1e999}\n',
    "odd.yaml": b"seed: [1\n",
    "twice.yaml": b"seed: 1\nseed: 2\n",
    "bomb.yaml": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(f"{n}: &{n} [{', '.join(['*' + p] * 9)}]\n".encode() for p, n in zip("abcdefg", "bcdefgh", strict=True)),
    "tag.yaml": b"seed: !!python/object/apply:os.getcwd []\n",
    "list.yaml": b"- 1\n",
    "deep.yaml": b"seed: " + DEEP.encode() + b"\n",
    "binary.parquet": b"PAR1" + bytes(64) + b"PAR1",
    "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
    "run/ledger.jsonl": b'3\n"x"\n{"event": 1}\n[]\n',
    "run/summary.json": b'{"versions": [1, {"name": {}}]}',
    "run/plan.yaml": b"versions: [[[]]]\n",
    "model/config.json": b'{"model_type": 3}',
    "model/tokenizer_config.json": b"[]",
    "model/tokenizer.json": b"{}",
    "model/model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
    "list/config.json": b"[1]",
    "list/tokenizer_config.json": b"{}",
    "list/model.safetensors": b"",
}
"""Damaged files of every kind that an option may name."""


def write_files(folder: Path) -> None:
    """Write `FILES`, a pipe that nobody writes into, and a circle of links."""
    for name, content in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "circle").symlink_to("circle")


PATHS = [
    *FILES,
    *(
        "pipe.jsonl",
        "circle",
        "run",
        "model",
        "list",
        ".",
        "..",
        "/",
        "",
        " ",
        "~",
        "nowhere",
        "odd.yaml/below",
        "/dev/null",
    ),
    *("a" * 300, "a/" * 3000, "\x00", "\udcff", "$HOME", "http://localhost:1/v1", "acme/no-such", "-"),
]
VALUES = [
    *(
        "null",
        "true",
        "[]",
        "{}",
        "[1, two]",
        "{a: b}",
        "{a: {b: {c: 1}}}",
        "[[]]",
        "[",
        "{",
        "}",
        ":",
        "&a [*a]",
        "*a",
        "!!binary x",
    ),
    *(
        "0",
        "-1",
        "1e-400",
        "1e400",
        ".nan",
        "-.inf",
        "9" * 5000,
        "1" * 30,
        "0x10",
        "1_000",
        "2147483648",
        "½",
        "1e3",
        "5 ",
        "--seed",
    ),
    *(
        "os:getcwd",
        "os:",
        ":path",
        "no.such:thing",
        "rlhf.rewards.examples:Brevity",
        "json:loads",
        "a:b:c",
        "llama2",
        "nf4",
    ),
    *(
        "{class_path: os.system}",
        "{checkpoint: nowhere}",
        "{server: {url: 1}}",
        "[model, list]",
        '["odd.jsonl"]',
        "{x: model}",
    ),
]
values = st.one_of(st.sampled_from(PATHS), st.sampled_from(VALUES), st.text(max_size=8))


def as_json(text: str) -> str:
    return json.dumps(text)
