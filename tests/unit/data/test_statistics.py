"""The table's figures on rows that can be counted by hand."""

from __future__ import annotations

import pytest

from rlhf.conversation import Renderer
from rlhf.data.rows import Preference
from rlhf.data.statistics import preference_statistics, statistics_table
from rlhf.errors import InputError


class WordRenderer(Renderer):
    """Counts words, so that lengths are plain to see."""

    def __init__(self):
        pass

    def count_tokens(self, texts):
        return [len(text.split()) for text in texts]


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
    figures = preference_statistics(ROWS, WordRenderer())
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
    figures = preference_statistics(ROWS[2:], WordRenderer())
    assert figures["safety"] is None and figures["longer_wins"] is None and figures["strength"] == {"unlabelled": 1.0}
    assert figures["tokens_per_example"] == figures["tokens_per_prompt"] + figures["tokens_per_response"]
    with pytest.raises(InputError, match="there are no rows"):
        preference_statistics([], WordRenderer())


def test_table():
    lines = statistics_table({"a": ROWS[:1], "b": ROWS[1:]}, WordRenderer()).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| a | 1 | 1.0 | 4.0 | 2.0 | 2.0 |"
    assert lines[-1].startswith("| Total | 3 | 1.3 |")


def test_tokens_are_the_tokenizers(tiny_tokenizer):
    texts = ["what is the river ?", "</s>"]
    expected = [len(tiny_tokenizer(text)["input_ids"]) for text in texts]
    assert Renderer(tiny_tokenizer).count_tokens(texts) == expected
