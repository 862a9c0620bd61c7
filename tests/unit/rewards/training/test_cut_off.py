"""What counts as an answer that was cut off."""

from __future__ import annotations

import pytest

from rlhf.rewards.training.cut_off import breaks_off, cut_off


@pytest.mark.parametrize(
    "text",
    [
        "It is blue. Look up and",
        "It is blue. First,",
        "Is it? I would say that 7",
        "空は青い。それは",
        "It is blue. Look up and \n",
    ],
)
def test_the_middle_of_a_sentence_after_a_whole_one(text: str) -> None:
    assert breaks_off(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "yes, of course",
        "It is blue.",
        'He said: "It is blue."',
        "Is it? Yes!)",
        "1. one\n2. two",
        "See www.example.org/page",
        "Use this:\n```python\nprint(1)\n```",
        "空は青い。",
        "It is **blue.**",
    ],
)
def test_what_ends_or_has_no_sentences(text: str) -> None:
    assert not breaks_off(text)


def test_cut_off_makes_an_answer_that_breaks_off() -> None:
    text = "The sky is blue. It is so by day. At night it is dark, and the stars are seen."
    assert cut_off(text) == "The sky is blue. It is so by day. At night it"
    assert breaks_off(cut_off(text)) and not breaks_off(text)
    assert cut_off("Yes.") == "Yes"
