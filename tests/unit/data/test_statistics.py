"""The table's figures on rows that can be counted by hand."""

from __future__ import annotations

import pytest

from rlhf.data.rows import Preference
from rlhf.data.statistics import preference_statistics, statistics_table
from rlhf.errors import InputError


def words(texts, add_special_tokens, verbose):
    """A tokenizer of words, so that lengths are plain to see."""
    return {"input_ids": [text.split() for text in texts]}


def row(chosen, rejected, *turns, **labels):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return Preference("x", messages, chosen, rejected, **labels)


ROWS = [
    row("a b c", "a", "one two", strength="better", chosen_safe=True, rejected_safe=False),
    row("a", "b c", "one", "two three four", "five", strength="better", chosen_safe=True, rejected_safe=True),
    row("a b", "c d", "one two three"),
]


def test_figures():
    figures = preference_statistics(ROWS, words)
    assert figures == {
        "comparisons": 3,
        "turns": pytest.approx(4 / 3),
        "tokens_per_example": pytest.approx((2 + 2 + 5 + 1.5 + 3 + 2) / 3),
        "tokens_per_prompt": pytest.approx((2 + 1 + 1 + 3) / 4),
        "tokens_per_response": pytest.approx((2 + 1.5 + 2) / 3),
        "longer_wins": 0.5,
        "strength": {"better": pytest.approx(2 / 3), "unlabelled": pytest.approx(1 / 3)},
        "safety": {"chosen_safe_other_unsafe": 0.5, "both_safe": 0.5, "both_unsafe": 0.0},
    }


def test_without_labels_or_rows():
    figures = preference_statistics(ROWS[2:], words)
    assert figures["safety"] is None and figures["longer_wins"] is None and figures["strength"] == {"unlabelled": 1.0}
    assert figures["tokens_per_example"] == figures["tokens_per_prompt"] + figures["tokens_per_response"]
    with pytest.raises(InputError, match="there are no rows"):
        preference_statistics([], words)


def test_table():
    lines = statistics_table({"a": ROWS[:1], "b": ROWS[1:]}, words).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| a | 1 | 1.0 | 4.0 | 2.0 | 2.0 |"
    together = statistics_table({"all": ROWS}, words).splitlines()[2]
    assert lines[-1] == together.replace("all", "Total") and lines[-1].startswith("| Total | 3 | 1.3 |")


def test_tokens_are_the_tokenizers_without_begin_and_end(tiny_tokenizer):
    question, answers = "what is the river ?", ("</s> mora .", "a goat")
    expected = [len(tiny_tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (question, *answers)]
    figures = preference_statistics([row(*answers, question)], tiny_tokenizer)
    assert figures["tokens_per_prompt"] == expected[0]
    assert figures["tokens_per_response"] == sum(expected[1:]) / 2
