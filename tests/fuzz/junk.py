"""What is written where a value, a file or an option is asked for, by people and by cats on keyboards."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

HOW_MANY = [pytest.param(3, id="some"), pytest.param(300, id="many", marks=pytest.mark.long)]
"""Examples of one test: some in every run, many in `make long`."""
STUCK = 300
"""Seconds after which an example is taken to wait for ever, also on a busy machine."""
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "sure"}]
ROW = {"id": "a", "messages": MESSAGES[:1], "chosen": "sure", "rejected": "no", "domain": "helpfulness", "text": "a"}
DEEP = "[" * 3000 + "]" * 3000
_ALIASES = "".join(f"{n}: &{n} [{', '.join(['*' + p] * 9)}]\n" for p, n in zip("abcdefg", "bcdefgh", strict=True))
FILES: dict[str, str | bytes] = {
    "rows.jsonl": json.dumps(ROW) + "\n",
    "good/config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
    "good/tokenizer_config.json": "{}",
    "scores/config.json": json.dumps({"model_type": "llama", "id2label": {"0": "LABEL_0"}}),
    "scores/tokenizer_config.json": "{}",
    "empty.jsonl": "",
    "garbage.jsonl": bytes(range(256)),
    "numbers.jsonl": "1\n2\n",
    "lists.jsonl": "[[1], []]\n",
    "surrogate.jsonl": json.dumps({**ROW, "chosen": "\ud83d"}) + "\n",
    "digits.jsonl": '{"messages": ' + "9" * 6000 + "}\n",
    "deep.jsonl": '{"messages": ' + DEEP + "}\n",
    "odd.jsonl": json.dumps({**ROW, "messages": {"role": "user"}, "chosen": 3, "domain": {}}) + "\n",
    "cut.yaml": "seed: [1\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "bomb.yaml": f"a: &a [{'x, ' * 9}]\n{_ALIASES}",
    "tag.yaml": "seed: !!python/object/apply:os.getcwd []\n",
    "list.yaml": "- 1\n",
    "deep.yaml": f"seed: {DEEP}\n",
    "cut.parquet": b"PAR1" + bytes(64) + b"PAR1",
    "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
    "run/ledger.jsonl": '3\n"x"\n{"event": 1}\n[]\n',
    "run/summary.json": '{"versions": [1, {"name": {}}]}',
    "run/plan.yaml": "versions: [[[]]]\n",
    "odd/config.json": '{"model_type": 3, "id2label": [], "architectures": {}}',
    "odd/tokenizer_config.json": "[]",
    "odd/model.safetensors": b"\x08" + bytes(7) + b"{}      ",
    "list/config.json": "[1]",
    "list/tokenizer_config.json": "{}",
    "list/model.safetensors": "",
}
"""Files that an option may name: some in order, and damaged ones of every kind."""


def write_files(folder: Path) -> None:
    """Write `FILES`, the weights of two small checkpoints, a pipe that nobody writes into, and a circle of links."""
    for name, content in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    one = np.ones((1, 4), np.float32)
    save_file({"model.embed_tokens.weight": one}, folder / "good" / "model.safetensors")
    save_file({"score.weight": one}, folder / "scores" / "model.safetensors")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "circle").symlink_to("circle")


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], object], examples: int) -> None:
    """Call `check` with so many examples, the same on every run.

    None may take 20 seconds of the processor, or wait for what does not come (a pipe).
    """

    def checked(example: Any) -> None:
        signal.alarm(STUCK)
        start = time.process_time()
        try:
            check(example)
        finally:
            signal.alarm(0)
        assert time.process_time() - start < 20

    def stuck(*_: object) -> None:
        raise TimeoutError(f"nothing came of it in {STUCK} seconds")

    before = signal.signal(signal.SIGALRM, stuck)
    try:
        how = settings(derandomize=True, deadline=None, database=None, max_examples=examples)
        settings(how, suppress_health_check=list(HealthCheck))(given(strategy)(checked))()
    finally:
        signal.signal(signal.SIGALRM, before)


PATHS = [
    *FILES,
    *("pipe.jsonl", "circle", "run", "good", "odd", "list", ".", "..", "/", "", " ", "~", "nowhere", "cut.yaml/below"),
    *("/dev/null", "a" * 300, "a/" * 3000, "\x00", "\udcff", "$HOME", "http://localhost:1/v1", "acme/no-such", "-"),
]
VALUES = [
    *("null", "true", "[]", "{}", "[1, two]", "{a: b}", "{a: {b: {c: 1}}}", "[[]]", "[", "{", "}", ":", "&a [*a]"),
    *("*a", "!!binary x", "0", "-1", "1e-400", "1e400", ".nan", "-.inf", "9" * 5000, "1" * 30, "0x10", "1_000"),
    *("2147483648", "½", "1e3", "5 ", "--seed", "os:getcwd", "os:", ":path", "no.such:thing", "json:loads", "a:b:c"),
    *("rlhf.rewards.examples:Brevity", "llama2", "nf4", "{class_path: os.system}", "{checkpoint: nowhere}"),
    *("{server: {url: 1}}", "[good, odd]", '["odd.jsonl"]', "{x: good}"),
]
values = st.one_of(st.sampled_from(PATHS), st.sampled_from(VALUES), st.text(max_size=8))
