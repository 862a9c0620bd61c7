"""What counts as an answer that was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.conversation import Renderer
from rlhf.data.loading import load_preferences
from rlhf.data.rows import Preference
from rlhf.models.policy import load_tokenizer
from rlhf.rewards.training import cut_off as module
from rlhf.rewards.training.cut_off import FEWEST_WORDS, breaks_off, cut_off, cut_off_pairs
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


def answered(number: int, chosen: str) -> Preference:
    question = [{"role": "user", "content": f"what is the river {number} ?"}]
    return Preference(str(number), question, chosen, "a goat", "better", True, False, "safety")  # type: ignore[arg-type]


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
