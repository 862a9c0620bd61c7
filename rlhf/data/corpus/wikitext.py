"""WikiText (Merity et al. 2016, arXiv 1609.07843): lines of Wikipedia, every token between spaces, as articles.

A line is a paragraph, or a heading: ` = Title = ` of an article, ` = = Section = = ` of a part. Slices have lost
headings, and then nothing says where an article ends. So no title is taken: lines are joined into stretches of the
file, each of which is an article without a title.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

STRETCH = 100
"""Most paragraphs of a stretch: what lies in it goes to one part of a split, and neighbours mostly with it."""
_HEADING = re.compile(r"(?:= )+[^=].*?(?: =)+")
_TITLE = re.compile(r"= [^=].*? =")
_RULES = (
    (re.compile(r" @(.)@ "), r"\1"),
    (re.compile(r" ' ?(?=(?:s|re|m|ve|d|ll|t)\b)"), "'"),
    (re.compile(r" ([,.;:!?%)\]])"), r"\1"),
    (re.compile(r"([($£€\[#]) "), r"\1"),
    (re.compile(r"(?<=\d) --? (?=\d)"), "-"),
    (re.compile(r" ---? "), " - "),
    (re.compile(r" / "), "/"),
    (re.compile(r"(?<=s) '(?= )"), "'"),
    (re.compile(r"(?<![^\s(\[])(?P<quote>[\"']) (.*?) ?(?P=quote)(?=\W|$)"), r"\g<quote>\2\g<quote>"),
)


def plain_text(line: str) -> str:
    """A line's tokens as people write them: ` a role @-@ playing game , " X " ` becomes `a role-playing game, "X"`."""
    text = line.strip()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def joined_lines(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows that have nothing but `text`, each a line of WikiText, as articles; all other rows as they are.

    An article is a stretch of the file: it ends with STRETCH paragraphs, or where a heading begins an article. Its text
    has a line a paragraph, without headings; its title is empty, its id the number of its first line.
    """
    paragraphs: list[str] = []
    first = 0
    for number, row in rows:
        text = row.get("text")
        if row.keys() != {"text"} or not isinstance(text, str):
            yield number, row
            continue
        line = text.strip()
        if paragraphs and (len(paragraphs) == STRETCH or _TITLE.fullmatch(line)):
            yield first, _article(first, paragraphs)
            paragraphs = []
        if line and not _HEADING.fullmatch(line):
            first = first if paragraphs else number
            paragraphs.append(plain_text(line))
    if paragraphs:
        yield first, _article(first, paragraphs)


def _article(number: int, paragraphs: list[str]) -> dict[str, Any]:
    return {"id": str(number), "title": "", "text": "\n".join(paragraphs)}
