"""Instructions: wordings, files, lists that a model wrote, combinations."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.synthesis.instructions import (
    Constraint,
    constraints_from_lists,
    draw_instructions,
    read_constraints,
)

ROWS = [{"kind": k, "value": v} for k, v in (("hobby", "tennis"), ("language", "French"), ("figure", "Napoleon"))]


def test_the_paper_s_wordings() -> None:
    texts = [(c.text, c.short) for c in map(Constraint.from_dict, ROWS)]
    assert texts == [
        ("You enjoy tennis.", "Hobby: tennis."),
        ("Speak in French.", "Language: French."),
        ("Act as Napoleon.", "Figure: Napoleon."),
    ]


def test_combined_at_random_one_of_a_kind_half_shortened() -> None:
    constraints = [*map(Constraint.from_dict, ROWS), Constraint.from_dict({"kind": "hobby", "value": "chess"})]
    drawn = draw_instructions(constraints, 4000, random.Random(0), most=3)
    assert drawn == draw_instructions(constraints, 4000, random.Random(0), most=3)
    for instruction in drawn:
        kinds = [c.kind for c in instruction.constraints]
        assert len(set(kinds)) == len(kinds)
        assert instruction.text in (
            " ".join(c.text for c in instruction.constraints),
            " ".join(c.short for c in instruction.constraints),
        )
    sizes = Counter(len(i.constraints) for i in drawn)
    assert set(sizes) == {1, 2, 3} and min(sizes.values()) > 1200
    short = sum(i.text.startswith(("Hobby", "Language", "Figure")) for i in drawn)
    assert 1850 < short < 2150
    assert {i.text for i in draw_instructions(constraints[:1], 9, random.Random(0), short_share=0)} == {
        constraints[0].text
    }


def test_lists_that_a_model_wrote() -> None:
    answers = {"hobby": ["1. Tennis\n2) chess.\n", "- TENNIS\n* Reading\n" + "long " * 20], "language": ["French"]}
    assert [(c.kind, c.value) for c in constraints_from_lists(answers)] == [
        ("hobby", "Tennis"),
        ("hobby", "chess"),
        ("hobby", "Reading"),
        ("language", "French"),
    ]
    with pytest.raises(InputError, match="instructions: the model wrote no list of kind figure; give a file"):
        constraints_from_lists({"figure": ["", "  \n"]})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"value": "x"}, "kind: must be a non-empty text, got None"),
        ({"kind": "hobby", "value": " "}, "value: must be a non-empty text, got ' '"),
        ({"kind": "mood", "value": "calm"}, "text: must be a non-empty text, got None"),
        ({"kind": "hobby", "value": "x", "pattern": "("}, r"pattern: '\(' is no regular expression"),
        ({"kind": "hobby", "value": "x", "short": 3}, "short: must be a non-empty text, got 3"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(row: dict, words: str, tmp_path: Path) -> None:
    file = tmp_path / "instructions.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=f"instructions.jsonl:2: {words}"):
        read_constraints(file)
