"""Lines of WikiText as articles: the text by exact examples, what goes together, and the question that is asked."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.data.corpus.simple_wikipedia import Passage, article_of, passages_of, question_prompt
from rlhf.data.corpus.text_filters import Answer
from rlhf.data.corpus.wikitext import STRETCH, joined_lines, plain_text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (" It is a role @-@ playing game , the third . ", "It is a role-playing game, the third."),
        ("1 @,@ 234 men and 2 @.@ 5 % of it", "1,234 men and 2.5% of it"),
        ('He wrote " Carry On " , and " Stop ! "', 'He wrote "Carry On", and "Stop!"'),
        ('a sac ( " uterine milk " ) , in 1985 ( two )', 'a sac ("uterine milk"), in 1985 (two)'),
        ("It wasn 't the game 's best ; they 're late", "It wasn't the game's best; they're late"),
        ("The Jackets ' approach and Columbus ' pick", "The Jackets' approach and Columbus' pick"),
        ("the sign ' Keep out ' was old", "the sign 'Keep out' was old"),
        ("They didn ' t say so", "They didn't say so"),
        ("1988 -- 1991 -- or 4 - 2 -- cost $ 5 and / or £ 3", "1988-1991 - or 4-2 - cost $5 and/or £3"),
        ("A B [ note 1 ] : C ?", "A B [note 1]: C?"),
        ("nothing to do", "nothing to do"),
    ],
)
def test_tokens_become_text(line: str, text: str) -> None:
    assert plain_text(line) == text


def lines(*texts: str) -> list[tuple[int, dict[str, Any]]]:
    return [(number, {"text": text}) for number, text in enumerate(texts, start=1)]


def test_lines_are_joined_and_headings_end_an_article() -> None:
    found = list(
        joined_lines(
            lines(" = One = ", " a , b . ", " = = Part = = ", "", " c . ", " = Two ( x ) = ", " = = = Deep = = = ", "d")
        )
    )
    assert found == [
        (2, {"id": "2", "title": "", "text": "a, b.\nc."}),
        (8, {"id": "8", "title": "", "text": "d"}),
    ]
    assert list(joined_lines(lines(" = Only = ", " "))) == []


def test_a_long_stretch_is_cut() -> None:
    found = list(joined_lines(lines(*map(str, range(2 * STRETCH + 1)))))
    assert [number for number, _ in found] == [1, STRETCH + 1, 2 * STRETCH + 1]
    assert [row["text"].count("\n") + 1 for _, row in found] == [STRETCH, STRETCH, 1]


def test_rows_that_say_more_than_a_text_stay() -> None:
    rows = [(1, {"title": "Sun", "text": "It is hot ."}), (2, {"text": 3}), (3, {"text": "a", "question": "What?"})]
    assert list(joined_lines(rows)) == rows


def test_an_article_without_a_title_asks_by_its_paragraph_and_stays_together() -> None:
    (_, row), *_ = joined_lines(lines("a", "b", "c"))
    passages = passages_of(article_of(row, "7"))
    assert [(p.id, p.together) for p in passages] == [("1.1", "1"), ("1.2", "1"), ("1.3", "1")]
    (message,) = question_prompt(passages[0])
    assert message["content"].startswith("Here is a paragraph:\n\na\n\nWrite one short question")
    assert Passage("12.3", "The Sun", Answer("a")).together == "the sun", "by title, whatever row it stands in"
    assert Passage("12", "", Answer("a")).together == "12"
