"""What counts as an answer that was cut off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rlhf.conversation import Conversation, Renderer, with_thoughts, without_thoughts
from rlhf.data.loading import load_preferences
from rlhf.data.rows import Preference
from rlhf.models.policy import load_tokenizer
from rlhf.rewards.training import cut_off as module
from rlhf.rewards.training.cut_off import (
    CUT_OFF_PAIRS,
    FEWEST_WORDS,
    breaks_off,
    cut_off,
    cut_off_figures,
    cut_off_pairs,
)
from rlhf.rewards.training.pairs import Pair, render_pairs
from rlhf.rewards.training.table import PairTable


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


def test_words_end_at_any_space_or_at_each_letter_where_a_script_has_none() -> None:
    assert cut_off("one\ntwo\nthree\tfour  five\nsix.") == "one\ntwo\nthree\tfour"
    assert cut_off("空は青い。それは光が散るからです。") == "空は青い。それは光が散"
    assert cut_off("ท้องฟ้าเป็นสีฟ้า", 1 / 2) == "ท้องฟ้าเ"


@pytest.mark.parametrize("text", ["** ** ** and so on", "    ... yes", "...", "! ! ! ! ! ! ! ! ! ! ! !"])
def test_something_is_left_of_what_begins_with_marks(text: str) -> None:
    assert cut_off(text, 1 / 4).strip() and text.startswith(cut_off(text, 1 / 4))


def answered(number: int, chosen: str) -> Preference:
    question = [{"role": "user", "content": f"what is the river {number} ?"}]
    return Preference(str(number), question, chosen, "a goat", "better", True, False, "safety")  # type: ignore[arg-type]


def length(conversations: Sequence[Conversation]) -> torch.Tensor:
    """What a reward model would see of the answers, in letters."""
    return torch.tensor([float(len(talk[-1]["content"])) for talk in map(without_thoughts, conversations)])


def gain_of_a_cut(rows: list[Preference]) -> float | None:
    return cut_off_figures(length, rows, length([row.conversation("chosen") for row in rows]).tolist())["cut_off_gain"]


def test_what_is_thought_before_an_answer_is_not_cut() -> None:
    thoughts = "They ask for the river. I know it. " * 9
    assert gain_of_a_cut([answered(0, with_thoughts(thoughts, WHOLE))] * 2) == len(cut_off(WHOLE)) - len(WHOLE)
    assert gain_of_a_cut([answered(0, with_thoughts(thoughts, "It is long."))] * 2) is None


def test_answers_without_spaces_are_measured_and_cut_too(renderer: Renderer) -> None:
    text = "空は青い。それは光が散るからです。"
    assert gain_of_a_cut([answered(0, text)] * 2) == len(cut_off(text)) - len(text)
    made = [pair for chunk in cut_off_pairs(table(renderer, [answered(0, text)]), 1.0, renderer, 0) for pair in chunk]
    assert [text.startswith(pair.preference.rejected) for pair in made] == [True]


def test_the_answers_that_are_measured_are_spread_over_all() -> None:
    """A file of both domains has one behind the other."""
    asked: list[str] = []

    def reward(conversations: Sequence[Conversation]) -> torch.Tensor:
        asked.extend(talk[0]["content"] for talk in conversations)
        return torch.zeros(len(conversations))

    rows = [answered(number, WHOLE) for number in range(3 * CUT_OFF_PAIRS)]
    cut_off_figures(reward, rows, [0.0] * len(rows))
    assert asked == [row.messages[0]["content"] for row in rows[::3]]


WHOLE = "The river is called mora, and it is long. It ends at the sea, as every river does here."


@pytest.fixture
def renderer(tiny_policy_path: Path) -> Renderer:
    return Renderer(load_tokenizer(tiny_policy_path))


def table(renderer: Renderer, rows: list[Preference]) -> PairTable:
    return PairTable.of(render_pairs(rows, renderer, None))


def test_a_chosen_answer_stands_against_itself_cut_off(renderer: Renderer) -> None:
    """Alternately with and without its end token; of the row nothing changes but what is not known of the cut one."""
    rows = [answered(number, WHOLE) for number in range(40)]
    pairs = table(renderer, rows)
    made = [pair for chunk in cut_off_pairs(pairs, 0.25, renderer, seed=3) for pair in chunk]
    assert len(made) == 10 and len({pair.preference.id for pair in made}) == 10
    shares = []
    for number, pair in enumerate(made):
        row, own = pair.preference, pairs[int(pair.preference.id)]
        assert pair.chosen == own.chosen and row.messages == own.preference.messages and row.chosen == WHOLE
        assert WHOLE.startswith(row.rejected) and row.rejected[-1] != "."
        assert (row.strength, row.chosen_safe, row.rejected_safe, row.domain) == (None, True, None, "safety")
        whole = renderer.dialogue(row.conversation("rejected")).input_ids
        assert pair.rejected == (whole if number % 2 else whole[: len(pair.rejected)]), "the same text"
        assert (len(whole) > len(pair.rejected)) == (number % 2 == 0), "every other one has no end token"
        shares.append(len(row.rejected.split()) / len(WHOLE.split()))
    assert 0.2 < min(shares) < 0.5 < max(shares) < 0.95


def test_which_are_cut_depends_on_the_seed_alone(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = table(renderer, [answered(number, WHOLE) for number in range(20)])

    def made(seed: int) -> list[Pair]:
        return [pair for chunk in cut_off_pairs(pairs, 0.5, renderer, seed) for pair in chunk]

    once = made(0)
    assert [pair.preference.id for pair in made(1)] != [pair.preference.id for pair in once]
    monkeypatch.setattr(module, "_CHUNK", 3)
    assert made(0) == once


def test_answers_that_are_short_or_break_off_are_not_cut(
    renderer: Renderer, capsys: pytest.CaptureFixture[str]
) -> None:
    short, broken = " ".join(WHOLE.split()[: FEWEST_WORDS - 1]) + ".", cut_off(WHOLE)
    rows = [answered(0, short), answered(1, broken), answered(2, WHOLE), answered(3, WHOLE)]
    made = [pair for chunk in cut_off_pairs(table(renderer, rows), 0.75, renderer, seed=0) for pair in chunk]
    assert {pair.preference.id for pair in made} == {"2", "3"}
    told = "cut_off_share: 0.75 asks for 3 pairs; 2 chosen answers are long enough and whole"
    assert told in capsys.readouterr().err
    assert not list(cut_off_pairs(table(renderer, rows), 0.0, renderer, seed=0))


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
