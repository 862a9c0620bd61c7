"""Clean a text and say whether it stays: every step a pure function with a name (the QLoRA report).

`CLEANERS` run over every question, answer and paragraph, in their order; `answer_checks` are what an answer must pass.
Toxicity and leakage need a model, whose part is in `rlhf.models.text_judges`.
"""

from __future__ import annotations

import html
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rlhf.data.corpus.readability import Counts, count, grade, reading_ease
from rlhf.errors import InputError

_CURLY = str.maketrans("“”„«»‘’‚´", '"""""\'\'\'\'')
_QUOTED_LINES = re.compile(r"^[ \t]*(?:>|&gt;)(?!!).*\n?", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?: +\"[^\"]*\")?\)")
_URL = re.compile(r"(?:https?://|\bwww\.)[^\s<>\"]*[^\s<>\".,;:!?')\]]|\b_URL_\d+_", re.IGNORECASE)
_EMPTY_BRACKETS = re.compile(r" ?(?:\(\s*\)|\[\s*\]|<\s*>)")
_TAG_NAMES = (
    "a|abbr|b|big|blockquote|br|center|cite|code|dd|del|div|dl|dt|em|font|h[1-6]|hr|i|img|ins|kbd|li|nowiki|ol|p|pre|q|"
    "ref|s|samp|small|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul"
)
_HTML = (
    (re.compile(r"<!--.*?-->|<ref\b[^<>]*/>|<(ref|script|style)\b[^<>]*>.*?</\1>", re.DOTALL | re.IGNORECASE), ""),
    (re.compile(r"</?(?:br|p|div|li|tr|h[1-6])\b[^<>]*>", re.IGNORECASE), "\n"),
    (re.compile(rf"</?(?:{_TAG_NAMES})\b[^<>]*>", re.IGNORECASE), ""),
)
_WIKI = (
    (re.compile(r"\{\{[^{}]*\}\}|\[\[(?:File|Image|Category):[^\[\]]*\]\]", re.IGNORECASE), ""),
    (re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]"), r"\1"),
    (re.compile(r"'{2,5}"), ""),
    (re.compile(r"^=+[ \t]*(.*?)[ \t]*=+[ \t]*$", re.MULTILINE), r"\1"),
)
_MARKDOWN = (
    (re.compile(r"^[ \t]*```.*\n?", re.MULTILINE), ""),
    (re.compile(r">!(.*?)!<", re.DOTALL), r"\1"),
    (re.compile(r"(?<![\w\\])(\*{1,3}|_{1,3}|~~)(?=[^\s*_~])([^\n]*?[^\s*_~\\])\1(?!\w)"), r"\2"),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
    (re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE), ""),
    (re.compile(r"\\([*_~^\[\]()#>`\\-])"), r"\1"),
)
_HAS_MARKDOWN = re.compile(r"[*_~`#\\!-]")
_EDIT = re.compile(
    r"(?:^|\n|(?<=[.!?)] ))[ \t]*[*_(\[]{0,3}(?:(?:first|second|third|final|last|quick|another|\d\w\w) )?"
    r"(?:edit(?:ed)?(?: to add)?[ \t]*#?\d*[*_)\]]{0,3}[ \t]*(?::|-|–|—)|eta:).*",
    re.IGNORECASE | re.DOTALL,
)
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
_EMPTY_LINES = re.compile(r"\n{3,}")


def remove_quotes(text: str) -> str:
    """Without the lines that quote somebody (">" first, also as &gt;); curly quotation marks become straight ones."""
    if ">" in text or "&gt;" in text:
        text = _QUOTED_LINES.sub("", text)
    return text if text.isascii() else text.translate(_CURLY)


def remove_urls(text: str) -> str:
    """A Markdown link becomes its text; addresses go, with the brackets that held nothing else, and so do the
    placeholders (_URL_0_) of the published ELI5 set."""
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    lower = text.lower()
    if not ("://" in lower or "www." in lower or "_url_" in lower):
        return text
    return _EMPTY_BRACKETS.sub("", _URL.sub("", text))


def remove_markup(text: str) -> str:
    """Plain text of HTML (known tags only, so that "x < y" stays), wiki markup and Markdown; entities are resolved."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _all(_HTML, text)
    if any(mark in text for mark in ("[[", "{{", "''", "=")):
        text = _all(_WIKI, text)
    return _all(_MARKDOWN, text) if _HAS_MARKDOWN.search(text) else text


def cut_edits(text: str) -> str:
    """Without what was added later: from a line or a sentence that begins with "Edit:" (EDIT 2:, Edited to add: …) on.

    Nothing is left where the text begins so.
    """
    lower = text.lower()
    return _EDIT.sub("", text) if "edit" in lower or "eta:" in lower else text


def normalize_whitespace(text: str) -> str:
    """Spaces, tabs and invisible characters in a row become one space or none, lines are stripped, and at most one
    empty line stands between two."""
    visible = text if text.isprintable() else _INVISIBLE.sub("", text)
    joined = "\n".join(" ".join(line.split()) for line in visible.split("\n"))
    return _EMPTY_LINES.sub("\n\n", joined).strip()


def _all(rules: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


CLEANERS: dict[str, Callable[[str], str]] = {
    "quotes": remove_quotes,
    "URLs": remove_urls,
    "markup": remove_markup,
    "edits": cut_edits,
    "white space": normalize_whitespace,
}


@dataclass
class Answer:
    """A cleaned answer with what is known of it. `score`: upvotes (None: it never had any); `toxicity`: 0 to 1."""

    text: str
    score: float | None = None
    toxicity: float | None = None

    @cached_property
    def counts(self) -> Counts:
        """Words, sentences, syllables."""
        return count(self.text)


Relation = Literal[">=", "<=", "<"]
_RELATIONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Check:
    """`name` of an answer must be `relation` to `bound`: what was not measured (None) passes, NaN fails."""

    name: str
    relation: Relation
    bound: float
    measure: Callable[[Answer], float | None]

    def passes(self, value: float | None) -> bool:
        """Whether an answer of that value stays."""
        return value is None or bool(_RELATIONS[self.relation](value, self.bound))

    @property
    def rule(self) -> str:
        """The check in words."""
        return f"{self.name} {self.relation} {self.bound:g}"


@dataclass(frozen=True)
class FilterConfig:
    """What stays; the defaults are the report's.

    Args:
        min_words: of an answer.
        min_reading_ease: of an answer, Flesch's.
        max_grade: the Flesch-Kincaid grade of an answer is below it.
        min_score: upvotes of an answer.
        max_toxicity: of a question and of an answer, 0 to 1.
        min_article_words: of an article.
        max_article_words: of an article.
        max_similarity: the cosine of two questions' embeddings from which on they may not stand in two parts.
    """

    min_words: int = 20
    min_reading_ease: float = 60.0
    max_grade: float = 9.0
    min_score: float = 4
    max_toxicity: float = 0.1
    min_article_words: int = 50
    max_article_words: int = 500
    max_similarity: float = 0.6

    def __post_init__(self) -> None:
        if self.min_words < 1:
            raise InputError(f"min_words: must be at least 1, got {self.min_words}")
        if not 0 <= self.max_toxicity <= 1:
            raise InputError(f"max_toxicity: must lie between 0 and 1, got {self.max_toxicity}")
        if not 0 < self.min_article_words <= self.max_article_words:
            raise InputError(
                f"min_article_words, max_article_words: must be above 0 and in order, got {self.min_article_words} and "
                f"{self.max_article_words}"
            )
        if not -1 <= self.max_similarity <= 1:
            raise InputError(f"max_similarity: is a cosine, between -1 and 1, got {self.max_similarity}")


def answer_checks(config: FilterConfig) -> list[Check]:
    """The checks that need no model, the cheap ones first."""
    return [
        Check("upvotes", ">=", config.min_score, lambda answer: answer.score),
        Check("words", ">=", config.min_words, lambda answer: answer.counts.words),
        Check("reading ease", ">=", config.min_reading_ease, lambda answer: reading_ease(answer.counts)),
        Check("grade", "<", config.max_grade, lambda answer: grade(answer.counts)),
    ]


def toxicity_check(config: FilterConfig) -> Check:
    """The check of a toxicity that a classifier gave."""
    return Check("toxicity", "<=", config.max_toxicity, lambda answer: answer.toxicity)
