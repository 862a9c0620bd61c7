"""Rows of any shape through every reader: read, left out and counted, or refused by a sentence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from junk import HOW_MANY, PATHS, fuzz

from rlhf.data.loading import load_conversations, load_preferences, load_prompts
from rlhf.data.looking import look_at, look_text
from rlhf.errors import InputError, path_sentence

FIELDS = [
    *("messages", "prompt", "chosen", "rejected", "conversations", "conversation", "instruction", "input", "output"),
    *("system", "history", "label", "completion", "question", "answer", "text", "score_chosen", "margin", "domain"),
    *(
        "strength",
        "chosen_safe",
        "id",
        "role",
        "content",
        "from",
        "value",
        "weight",
        "train",
        "tools",
        "name",
        "responses",
    ),
    *("response_0", "response_1", "better_response_id", "winner", "completions", "source", "images"),
]
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["user", "assistant", "system", "human", "gpt", "safety", "better", "\ud83d", "", " "]),
)
shapes = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)),
    max_leaves=12,
)
rows = st.lists(st.dictionaries(st.sampled_from(FIELDS), shapes, min_size=1, max_size=5), min_size=1, max_size=2)
READERS: dict[str, Callable[..., Any]] = {
    "sft": load_conversations,
    "preferences": load_preferences,
    "prompts": load_prompts,
}


def is_told(read: Callable[[], object]) -> bool:
    """Whether it is refused by a sentence; False: it is read."""
    try:
        read()
    except InputError as error:
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 700, str(error)
        return True
    except OSError as error:
        if path_sentence(error) is None:
            raise
        return True
    return False


@pytest.mark.parametrize("examples", HOW_MANY)
@pytest.mark.parametrize("kind", READERS)
def test_rows_of_any_shape(kind: str, examples: int, folder: Path) -> None:
    file = folder / "any.jsonl"

    def check(found: list[dict[str, Any]]) -> None:
        file.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        is_told(lambda: READERS[kind](str(file)))
        skipped: Counter[str] = Counter()
        is_told(lambda: READERS[kind](str(file), on_bad_row="skip", skipped=skipped))
        is_told(lambda: look_text(look_at(str(file), kind, None), str(file), tokens=False, colours=False))  # type: ignore[arg-type]

    fuzz(rows, check, 10 * examples)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path[:20]))
@pytest.mark.parametrize("kind", READERS)
def test_paths_of_any_kind(kind: str, path: str, folder: Path) -> None:
    is_told(lambda: READERS[kind](path))
