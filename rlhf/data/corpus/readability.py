"""How hard an English text is to read: Flesch reading ease and Flesch-Kincaid grade.

Words, sentences and syllables are counted as textstat counts them: a word is what stands between white space once the
punctuation is gone, a sentence of two words or fewer is none, and a word has a syllable more than it has places to
hyphenate (pyphen). Hyphenation finds fewer syllables than a pronouncing dictionary does, so texts look a little easier
than they are; newer textstat asks such a dictionary, which it must download.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

_QUOTE = re.compile(r"'(?![tsd]\b|ve\b|ll\b|re\b)")  # a single quote that is no apostrophe of a contraction
_PUNCTUATION = re.compile(r"[^\w\s']")
_SENTENCE = re.compile(r"\b[^.!?]+[.!?]*")
_WORD = re.compile(r"\w")
SHORTEST_SENTENCE = 3  # words


@dataclass(frozen=True)
class Counts:
    """What the readability formulas read of one text: how many words, sentences and syllables it has."""

    words: int
    sentences: int
    syllables: int


def count(text: str) -> Counts:
    """The counts of a text; all 0 where it has no word."""
    syllables = [n for token in text.split() if (n := _syllables(token))]
    if not syllables:
        return Counts(0, 0, 0)
    sentences = sum(map(_is_sentence, _SENTENCE.findall(text)))
    return Counts(len(syllables), max(1, sentences), sum(syllables))


def reading_ease(counts: Counts) -> float:
    """206.835 - 1.015 words / sentences - 84.6 syllables / words; higher is easier, plain English 60 to 70.

    Flesch (1948), "A new readability yardstick". NaN where there is no word.
    """
    if counts.words == 0:
        return float("nan")
    return 206.835 - 1.015 * counts.words / counts.sentences - 84.6 * counts.syllables / counts.words


def grade(counts: Counts) -> float:
    """0.39 words / sentences + 11.8 syllables / words - 15.59: the school year in the US that reads it with ease.

    Kincaid et al. (1975). NaN where there is no word.
    """
    if counts.words == 0:
        return float("nan")
    return 0.39 * counts.words / counts.sentences + 11.8 * counts.syllables / counts.words - 15.59


def _is_sentence(text: str) -> bool:
    words = 0
    for token in text.split():
        words += _WORD.search(token) is not None
        if words == SHORTEST_SENTENCE:
            return True
    return False


@lru_cache(maxsize=1 << 17)
def _syllables(token: str) -> int:
    """Of what stands between white space; 0 where that is punctuation alone."""
    word = _PUNCTUATION.sub("", _QUOTE.sub("", token)).lower()
    return len(_hyphenation().positions(word)) + 1 if word else 0


@cache
def _hyphenation() -> Any:
    from pyphen import Pyphen

    return Pyphen(lang="en_US")
