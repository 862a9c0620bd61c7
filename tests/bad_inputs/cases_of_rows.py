"""Rows that are broken, of another kind, or monsters."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from case import Case
from world import call

ASK, YES = {"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}
TURNS = [ASK, YES]
DEEP = "[" * 100_000 + "]" * 100_000
ROW = {"id": "r", "messages": TURNS, "prompt": "a ?", "chosen": "b", "rejected": "c", "domain": "helpfulness"}


def _row(**changes: object) -> str:
    return json.dumps({**ROW, **changes}) + "\n"


ROWS: dict[str, str | bytes] = {
    "empty": "",
    "blank lines": "\n\n\n",
    "numbers": "1\n2\n",
    "lists": "[1]\n[2]\n",
    "nulls": "null\n",
    "texts": '"a"\n',
    "bytes": bytes(range(256)) * 20,
    "another encoding": json.dumps(ROW).encode("utf-16"),
    "cut off": _row() + '{"messages": [',
    "two objects a line": json.dumps(ROW) + json.dumps(ROW),
    "no known field": '{"x": 1}\n',
    "half an emoji in an answer": _row(chosen="\ud83d", messages=[ASK, {**YES, "content": "\ud83d"}]),
    "half an emoji in a question": _row(prompt="\ud83d", messages=[{**ASK, "content": "\ud83d"}, YES]),
    "half an emoji in an id": _row(id="\udcff"),
    "half an emoji in a name": json.dumps({**ROW, "\ud83d": 1}) + "\n",
    "half an emoji in a source": _row(source="\ud83d"),
    "deep": '{"messages": ' + DEEP + "}\n",
    "rather deep": '{"messages": ' + "[" * 900 + "]" * 900 + "}\n",
    "deep meta": '{"messages": [], "meta": ' + "[" * 900 + "]" * 900 + "}\n",
    "digits": '{"messages": ' + "9" * 6000 + "}\n",
    "digits as an id": '{"id": ' + "9" * 4000 + ', "prompt": "a", "chosen": "b", "rejected": "c"}\n',
    "infinity": '{"messages": Infinity, "prompt": NaN}\n',
    "messages as text": _row(messages="hello", prompt=3),
    "messages as an object": _row(messages={"role": "user"}, prompt={}),
    "messages of numbers": _row(messages=[1, 2], prompt=[1]),
    "no messages": _row(messages=[], prompt=[]),
    "a message without role": _row(messages=[{"content": "a"}], prompt=[{"content": "a"}]),
    "a message without content": _row(messages=[{"role": "user"}], prompt=[{"role": "user"}]),
    "an unknown role": _row(
        messages=[{"role": "king", "content": "a"}, YES], prompt=[{"role": "king", "content": "a"}]
    ),
    "roles swapped": _row(messages=[YES, ASK], prompt=[YES, ASK]),
    "two system messages": _row(
        messages=[{"role": "system", "content": "x"}] * 2 + TURNS, prompt=[{"role": "system", "content": "x"}] * 2
    ),
    "an empty answer": _row(messages=[ASK, {**YES, "content": " "}], chosen=" "),
    "an answer as a number": _row(messages=[ASK, {**YES, "content": 7}], chosen=7),
    "a domain of no kind": _row(domain="cooking"),
    "a domain as a list": _row(domain=["safety"]),
    "the same pair": _row(rejected="b"),
    "tools": _row(messages=[ASK, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], tools=[{"a": 1}]),
    "images": _row(images=["x.png"], messages=[{"role": "user", "content": [{"type": "image"}]}, YES]),
    "a control character": _row(messages="\x1b[31m\x07", prompt="\x1b[31m\x07" if False else 3),
    "a long name": json.dumps({"x" * 100_000: 1}) + "\n",
    "many names": json.dumps({f"x{i}": i for i in range(50_000)}) + "\n",
}
FILES: dict[str, tuple[str, bytes]] = {
    "an unknown suffix": ("rows.docx", b"PK"),
    "parquet that is none": ("rows.parquet", b"PAR1" + bytes(64) + b"PAR1"),
    "gzip that is none": ("rows.jsonl.gz", b"\x1f\x8b\x08\x00"),
    "gzip cut off": ("rows.jsonl.gz", gzip.compress(_row().encode() * 1000)[:-20]),
    "zstd that is none": ("rows.jsonl.zst", b"(\xb5/\xfd" + bytes(9)),
    "an array cut off": ("rows.json", b'[{"a": 1}, '),
    "an object for an array": ("rows.json", b'{"a": 1}'),
    "csv of more cells": ("rows.csv", b"prompt,chosen\na,b,c,d\n"),
    "csv with a quote": ("rows.csv", b'prompt,chosen\n"a,b\n'),
    "csv of zeros": ("rows.csv", bytes(1000)),
    "an executable": ("rows.txt", b"\x7fELF" + bytes(range(256)) * 8),
    "a bomb": ("rows.jsonl.gz", gzip.compress(b" " * 100_000_000)),
}
MONSTERS: dict[str, Callable[[], str]] = {
    "20 MB in an answer": lambda: _row(
        messages=[ASK, {**YES, "content": "word " * 4_000_000}], chosen="word " * 4_000_000
    ),
    "20 MB in a question": lambda: _row(
        messages=[{**ASK, "content": "word " * 4_000_000}, YES], prompt="word " * 4_000_000
    ),
    "20 MB without a space": lambda: _row(
        messages=[ASK, {**YES, "content": "w" * 20_000_000}], chosen="w" * 20_000_000
    ),
    "20 MB beside": lambda: _row(meta="w" * 20_000_000),
    "1600 turns": lambda: _row(messages=TURNS * 800, prompt=[*TURNS * 800, ASK]),
    "100000 turns": lambda: _row(messages=TURNS * 50_000, prompt=[*TURNS * 50_000, ASK]),
    "100000 rows of one prompt": lambda: _row() * 100_000,
    "1600 half turns": lambda: _row(messages=[ASK] * 1600, prompt=[ASK] * 1600),
}
READERS = (
    ("data", call("sft", data="rows.jsonl")),
    ("preferences", call("helpfulness_reward", preferences="rows.jsonl")),
    ("prompts", call("rejection_sampling", prompts="rows.jsonl")),
    ("preferences", call("dpo", preferences="rows.jsonl")),
    ("prompts", call("ppo", prompts="rows.jsonl")),
    ("prompts", call("evaluate", prompts="rows.jsonl")),
    ("rows", ("rlhf", "look", "rows.jsonl", "--tokenizer", "policy")),
    ("rows", ("rlhf", "statistics", "rows.jsonl")),
    ("rows", ("rlhf", "quality-gate", "rows.jsonl")),
    ("rows", ("rlhf", "new", "made", "--chat", "policy", "--preferences", "rows.jsonl")),
)
FITS = "what is wrong with it is no business of this reader"


def cases() -> Iterator[Case]:
    """All of this file."""
    number = 0
    for name, text in ROWS.items():
        for turn in range(3):
            _, words = READERS[(number + 3 * turn) % len(READERS)]
            yield Case("rows", f"{_title(words)}: {name}", words, _writes("rows.jsonl", text), FITS)
        number += 1
    for name, (file, content) in FILES.items():
        for turn in range(2):
            _, words = READERS[(number + 3 * turn) % len(READERS)]
            given = tuple(word.replace("rows.jsonl", file) for word in words)
            yield Case("row files", f"{_title(words)}: {name}", given, _writes(file, content))
        number += 1
    for name, make in MONSTERS.items():
        for turn in range(4):
            _, words = READERS[(number + 3 * turn) % len(READERS)]
            yield Case(
                "monsters", f"{_title(words)}: {name}", words, _makes(make), "it is read, cut or left out, and said"
            )
        number += 1


def _title(words: tuple[str, ...]) -> str:
    return " ".join(words[:2]) if words[0] == "rlhf" else words[0]


def _writes(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _makes(make: Callable[[], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / "rows.jsonl").write_text(make(), encoding="utf-8")
