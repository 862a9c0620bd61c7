"""Pairs, judgements, and the rows they become."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.annotation.protocol import Judgement, Pair, preference_of
from rlhf.data.rows import Preference
from rlhf.errors import InputError

ASK = [{"role": "user", "content": "Why is the sky blue?"}]
PAIR = Pair(ASK, "Light scatters.", "It is not.", "safety", models=("v1", "v2"))


def test_a_judgement_becomes_the_row_that_reward_models_train_on() -> None:
    judgement = Judgement(PAIR.id, "ann", "b", "slightly", True, False, "a", 3.5)
    expected = Preference(PAIR.id, ASK, PAIR.b, PAIR.a, "slightly", True, False, "safety", "ann")
    assert preference_of(PAIR, judgement) == expected == Preference.from_dict(expected.to_dict())
    assert preference_of(PAIR, judgement, "other").id == "other"  # type: ignore[union-attr]
    assert preference_of(PAIR, Judgement(PAIR.id, "ann", None, skipped="unclear")) is None


def test_the_id_is_of_the_content() -> None:
    assert PAIR.id == Pair(ASK, PAIR.a, PAIR.b).id != Pair(ASK, PAIR.b, PAIR.a).id
    assert Pair(ASK, "a", "b", id="mine").id == "mine"


def test_a_pair_is_read_back() -> None:
    assert Pair.from_dict(PAIR.to_dict()) == PAIR


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"a": ""}, "a: "),
        ({"b": None}, "b: "),
        ({"domain": "fun"}, "domain: "),
        ({"part": "dev"}, "part: "),
        ({"models": "v1"}, "models: "),
        ({"models": [1, 2]}, "models: "),
        ({"id": 3}, "id: "),
        ({"choice": "a"}, "choice: "),
        ({"messages": []}, "messages"),
    ],
)
def test_a_bad_pair_is_refused_by_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}"):
        Pair.from_dict(PAIR.to_dict() | change)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"choice": "c"}, "choice"),
        ({"choice": "a", "strength": "much"}, "strength"),
        ({"choice": "a", "chosen_safe": 1}, "chosen_safe"),
        ({"choice": "a", "chosen_safe": False, "rejected_safe": True}, "chosen_safe, rejected_safe"),
        ({"choice": "a", "left": "left"}, "left"),
        ({"choice": "a", "seconds": "3"}, "seconds"),
        ({"choice": "a", "skipped": "unclear"}, "choice, skipped"),
        ({"choice": None}, "choice, skipped"),
        ({"choice": None, "skipped": "unclear", "strength": "better"}, "skipped"),
        ({"choice": "a", "annotator": " "}, "annotator"),
        ({"choice": "a", "pair": None}, "pair"),
        ({"choice": "a", "winner": "a"}, "winner"),
    ],
)
def test_a_bad_judgement_is_refused_by_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        Judgement.from_dict({"pair": "p", "annotator": "ann", **fields})


@pytest.mark.parametrize("labels", [(None, None), (True, True), (True, False), (False, False)])
def test_the_paper_s_bins_are_taken(labels: tuple[bool | None, bool | None]) -> None:
    judgement = Judgement("p", "ann", "a", "better", *labels)
    assert Judgement.from_dict(judgement.to_dict()) == judgement
