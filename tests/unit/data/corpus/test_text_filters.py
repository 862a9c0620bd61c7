"""Every filter of simple, safe text: texts that it must clean, keep and drop."""

from __future__ import annotations

import json
import math

import pytest

from rlhf.data.corpus.funnel import EXAMPLES, Funnel, Histogram
from rlhf.data.corpus.readability import Counts, count, grade, reading_ease
from rlhf.data.corpus.text_filters import (
    CLEANERS,
    Answer,
    FilterConfig,
    answer_checks,
    cut_edits,
    normalize_whitespace,
    remove_markup,
    remove_quotes,
    remove_urls,
    toxicity_check,
)
from rlhf.errors import InputError

EASY = "The sun is a big ball of hot gas. It gives us light and heat. We need both of them to live and grow our food."
HARD = (
    "Thermonuclear gravitational equilibrium necessitates considerable hydrostatic pressurization throughout "
    "extraordinarily voluminous stellar environments, notwithstanding convectively destabilizing perturbations."
)


# Readability


def test_the_formulas_at_given_counts():
    """The published formulas at counts chosen by hand."""
    counts = Counts(words=100, sentences=5, syllables=150)
    assert reading_ease(counts) == pytest.approx(59.635, abs=1e-9)
    assert grade(counts) == pytest.approx(9.91, abs=1e-9)


def test_counts_of_a_text_by_hand():
    assert count("I can't hear you. Why not? We are listening to it.") == Counts(11, 2, 13)  # "Why not?" is too short


@pytest.mark.parametrize("text", ["", " ", "... !", "' - '"])
def test_a_text_without_words_has_no_readability(text):
    assert count(text) == Counts(0, 0, 0)
    assert math.isnan(reading_ease(count(text))) and math.isnan(grade(count(text)))


def test_long_texts_without_spaces_come_to_an_end():
    """Not in hours, as a pattern that tries every way to split them would."""
    for text in ("a" * 50_000, "*" * 20_000, "[" * 20_000, "<" * 20_000, "{{" * 10_000, "`" * 20_000):
        for cleaner in CLEANERS.values():
            assert len(cleaner(text)) <= len(text)
        assert count(text).words <= 1


def odd_texts():
    return [
        "It's 3.5 metres, isn't it?! 'Quoted words' don't count. DON'T SHOUT. We're e.g. here... and there",
        "One. Two words. Now three words. (Brackets) - and dashes – between. Naïve café.",
        'well-known self-made words\nacross lines\n\nand paragraphs \'tis so. "No!" she said',
    ]


def assert_counts_as_textstat(texts, monkeypatch):
    textstat = pytest.importorskip("textstat")
    from textstat.backend.counts import _count_syllables as library

    monkeypatch.setattr(library, "get_cmudict", lambda lang: None)  # which it would download; then it asks pyphen
    for text in texts:
        found = count(text)
        expected = (textstat.lexicon_count(text), textstat.sentence_count(text), textstat.syllable_count(text))
        assert (found.words, found.sentences, found.syllables) == expected, text
        if found.words:
            assert reading_ease(found) == pytest.approx(textstat.flesch_reading_ease(text), abs=1e-9)
            assert grade(found) == pytest.approx(textstat.flesch_kincaid_grade(text), abs=1e-9)


def test_counts_are_textstats(monkeypatch):
    assert_counts_as_textstat([EASY, HARD, *odd_texts()], monkeypatch)


def test_counts_are_textstats_on_real_text(shared_data, monkeypatch):
    with (shared_data / "dolly" / "dolly_387.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["response"] for line in lines]
    assert_counts_as_textstat(texts[:150], monkeypatch)


# Clean-up


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("> he said so\nI disagree", "I disagree"),
        ("&gt; he said so\n\nI disagree", "\nI disagree"),
        ("2 > 1 is true", "2 > 1 is true"),
        (">!hidden!< is a spoiler", ">!hidden!< is a spoiler"),
        ("“curly” and ‘single’, it’s", "\"curly\" and 'single', it's"),
    ],
)
def test_quotes(text, expected):
    assert remove_quotes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see [the page](https://a.org/x_(y)) now", "see the page now"),
        ("see https://a.org/x?y=1. Then", "see . Then"),
        ("see (www.a.org/b) now", "see now"),
        ("look at _URL_0_ please", "look at  please"),
        ("an [aside] (and one more) stays", "an [aside] (and one more) stays"),
        ("f(x)[0] is code", "f(x)[0] is code"),
    ],
)
def test_urls(text, expected):
    assert remove_urls(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**bold**, *it* and __u__ and ~~no~~", "bold, it and u and no"),
        ("3 * 4 * 5 and snake_case_name stay", "3 * 4 * 5 and snake_case_name stay"),
        ("# Title\ntext `code` \\* star", "Title\ntext code * star"),
        ("a &amp; b <b>c</b><br/>d", "a & b c\nd"),
        ("x < y and y > z, <3", "x < y and y > z, <3"),
        ("'''Paris''' is in [[France|the country]] {{cite}}<ref>book</ref>.", "Paris is in the country ."),
        ("== History ==\ntext", "History\ntext"),
        (">!hidden!<", "hidden"),
        ("one\n\n---\n\ntwo", "one\n\n\n\ntwo"),
    ],
)
def test_markup(text, expected):
    assert remove_markup(text) == expected


@pytest.mark.parametrize(
    "tail",
    [
        "\nEdit: thanks for the gold!",
        "\n\nEDIT 2: more\nand more",
        " Edit: a typo",
        "\n**Edit:** a",
        "\n*EDIT*: b",
        "\nedit - c",
        "\nEdited to add: d",
        "\nETA: e",
        "\nSecond edit: f",
        "\n(Edit: g)",
    ],
)
def test_an_edit_s_tail_is_cut(tail):
    assert cut_edits("The sky is blue." + tail).strip() == "The sky is blue."


@pytest.mark.parametrize(
    "text",
    [
        "I edit: videos and more",
        "Choose Edit: then Copy",
        "The editor: a person",
        "Beta: the second letter",
        "credit: me",
    ],
)
def test_what_only_looks_like_an_edit_stays(text):
    assert cut_edits(text) == text


def test_an_answer_that_begins_with_its_edit_is_empty():
    assert cut_edits("EDIT: never mind") == ""


def test_white_space():
    assert normalize_whitespace(" a \t b\u00a0c \r\n d\n\n\n\ne\u200b\u0007 ") == "a b c\nd\n\ne"
    assert normalize_whitespace("a  b") == "a b"


@pytest.mark.parametrize("name", CLEANERS)
def test_a_clean_text_stays_as_it_is(name):
    assert CLEANERS[name](EASY + "\n\nA second paragraph, isn't it?") == EASY + "\n\nA second paragraph, isn't it?"


# Checks


def verdicts(answer, **config):
    return {check.name: check.passes(check.measure(answer)) for check in answer_checks(FilterConfig(**config))}


def test_an_easy_answer_with_upvotes_passes_all():
    assert verdicts(Answer(EASY, 4)) == {"upvotes": True, "words": True, "reading ease": True, "grade": True}


@pytest.mark.parametrize(
    ("answer", "dropped_by"),
    [
        (Answer(EASY, 3), ["upvotes"]),
        (Answer(" ".join(["word"] * 19) + ".", 4), ["words"]),
        (Answer(HARD, 4), ["words", "reading ease", "grade"]),
        (Answer("", 4), ["words", "reading ease", "grade"]),
    ],
)
def test_what_each_check_drops(answer, dropped_by):
    assert [name for name, passed in verdicts(answer).items() if not passed] == dropped_by


def test_the_bounds_themselves():
    """At least 20 words, 4 upvotes and an ease of 60; a grade below 9; a toxicity of at most 0.1."""
    checks = {c.name: c for c in [*answer_checks(FilterConfig()), toxicity_check(FilterConfig())]}
    assert {name: (c.relation, c.bound) for name, c in checks.items()} == {
        "upvotes": (">=", 4),
        "words": (">=", 20),
        "reading ease": (">=", 60),
        "grade": ("<", 9),
        "toxicity": ("<=", 0.1),
    }
    assert checks["reading ease"].passes(60) and not checks["reading ease"].passes(59.99)
    assert checks["grade"].passes(8.99) and not checks["grade"].passes(9)
    assert checks["toxicity"].passes(0.1) and not checks["toxicity"].passes(0.11)
    assert checks["words"].passes(20) and checks["upvotes"].passes(4) and checks["upvotes"].passes(None)
    assert verdicts(Answer(" ".join(["word"] * 20), 4))["words"]


@pytest.mark.parametrize(
    "bad",
    [{"min_words": 0}, {"max_toxicity": 1.5}, {"max_similarity": 2}, {"min_article_words": 9, "max_article_words": 8}],
)
def test_bounds_that_make_no_sense_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        FilterConfig(**bad)


# The funnel


def test_a_funnel_counts_what_goes_in_and_out():
    funnel = Funnel()
    texts = ["see https://a.org now", "plain", "> quoted\nown words"]
    assert [funnel.clean("answers", text) for text in texts] == ["see now", "plain", "own words"]
    check = answer_checks(FilterConfig(min_words=2))[1]
    assert [funnel.check(check, "answers", Answer(text)) for text in ("see now", "plain")] == [True, False]
    figures = {step["name"]: step for step in funnel.figures()}
    assert [figures[name]["changed"] for name in ("quotes", "URLs", "markup", "edits")] == [1, 1, 0, 0]
    assert (figures["words"]["in"], figures["words"]["out"]) == (2, 1)
    assert figures["words"]["examples"] == [{"text": "plain", "value": 1}]
    assert figures["URLs"]["examples"] == [{"text": texts[0], "after": "see  now"}]


def test_examples_are_few_and_from_everywhere():
    funnel = Funnel(seed=1)
    for i in range(1000):
        funnel.passed("step", "texts", "", False, str(i), i)
    values = [example["value"] for example in funnel.figures()[0]["examples"]]
    assert len(values) == EXAMPLES and max(values) > 100


def test_an_example_of_a_change_shows_it():
    funnel = Funnel()
    funnel.clean("answers", "word " * 1000 + "**bold** end")
    (example,) = next(step for step in funnel.figures() if step["name"] == "markup")["examples"]
    assert example["text"].endswith("word **bold** end") and example["after"].endswith("word bold end")


def test_a_histogram_counts_ends_and_no_nan():
    histogram = Histogram(0, 10, 5)
    for value in (-1, 0, 3.9, 10, 99, None, float("nan")):
        histogram.add(value)
    assert histogram.figures() == {
        "edges": [0, 2, 4, 6, 8, 10],
        "counts": [2, 1, 0, 0, 2],
        "mean": pytest.approx(111.9 / 5),
        "n": 5,
    }
