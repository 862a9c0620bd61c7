"""What counts as an answer that was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.data.loading import load_preferences
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


def test_among_harmless_pairs_an_answer_that_breaks_off_is_more_often_the_chosen_one(shared_data: Path) -> None:
    """What docs/recipes/ppo.md says of the pairs; not among the helpful ones."""
    alone = {}
    for kind in ("harmless", "helpful"):
        rows = load_preferences(shared_data / "hh-rlhf" / f"{kind}-base.jsonl.gz", on_bad_row="skip")
        alone[kind] = [
            sum(breaks_off(a) and not breaks_off(b) for a, b in pairs)
            for pairs in ([(row.chosen, row.rejected) for row in rows], [(row.rejected, row.chosen) for row in rows])
        ]
    assert alone["harmless"][0] > 1.5 * alone["harmless"][1] > 0
    assert alone["helpful"][0] < alone["helpful"][1]
