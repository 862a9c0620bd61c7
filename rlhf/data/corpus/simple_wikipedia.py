"""Simple Wikipedia: paragraphs of short articles, each with a question that it answers, written by a model.

An article is a row with `title` and `text` (the hub's `wikimedia/wikipedia`, or any dump read into such rows). Its
paragraphs are the answers; what the report calls an article of 50 to 500 words is the whole text here, and a paragraph
is kept by the same checks as any answer. A paragraph's question is asked of any chat model; an article that brings its
own `question` is one answer, its whole text. Lines of plain text, as WikiText has them, are articles without a title
(`rlhf.data.corpus.wikitext`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.conversation import Conversation
from rlhf.data.corpus.text_filters import Answer
from rlhf.errors import InputError

SOURCE = "simple_wikipedia"
MIN_QUESTION_WORDS = 3
INSTRUCTION = (
    "Here is a paragraph{source}:\n\n{paragraph}\n\n"
    "Write one short question that this paragraph answers. It must be clear without the paragraph. "
    "Write the question only."
)
_LABEL = re.compile(
    r"^\W*(?:(?:sure|certainly|here)[^\n:]*:\s*)?(?:(?:an?\s+)?question\s*\d*\s*:|\d+[.)])?\s*", re.IGNORECASE
)
_UNSEEN = re.compile(r"\b(?:this|the) (?:paragraph|passage|text|article|question)\b", re.IGNORECASE)
_QUESTION = re.compile(r"[^?\n]*\?")


@dataclass
class Article:
    """A title (empty: it has none) and its text; `question`: one that the whole text answers, or None."""

    id: str
    title: str
    text: str
    question: str | None = None


@dataclass
class Passage:
    """A paragraph that is to answer a question; `question` is empty until it is written."""

    id: str
    title: str
    answer: Answer
    question: str = ""

    @property
    def together(self) -> str:
        """What is the same of all passages that must go to one part of a split: the title, or else the article."""
        return self.title.lower() or self.id.rpartition(".")[0] or self.id


def article_of(row: Mapping[str, Any], article_id: str) -> Article:
    """A row as an article. InputError: `title` or `text` is no text, or `question` is none."""
    for name in ("title", "text"):
        if not isinstance(row.get(name), str):
            raise InputError(f"{name}: must be a text, got {row.get(name)!r:.60}")
    question = row.get("question")
    if question is not None and not (isinstance(question, str) and question.strip()):
        raise InputError(f"question: must be a non-empty text where there is one, got {question!r:.60}")
    return Article(str(row.get("id") or article_id), row["title"].strip(), row["text"], question)


def passages_of(article: Article) -> list[Passage]:
    """The paragraphs of a cleaned article, or all of it where it brings its question."""
    if article.question is not None:
        return [Passage(article.id, article.title, Answer(article.text), article.question)]
    paragraphs = [line for line in article.text.split("\n") if line]
    return [Passage(f"{article.id}.{i}", article.title, Answer(text)) for i, text in enumerate(paragraphs, start=1)]


def question_prompt(passage: Passage) -> Conversation:
    """What the model is asked."""
    source = f" from the article {passage.title!r}" if passage.title else ""
    content = INSTRUCTION.format(source=source, paragraph=passage.answer.text)
    return [{"role": "user", "content": content}]


def read_question(reply: str) -> str | None:
    """The first question of a model's reply, without a label or quotation marks around it.

    None where there is none of MIN_QUESTION_WORDS words or more, or where it speaks of "the paragraph", "the text" or
    "this question", which its reader does not see.
    """
    found = _QUESTION.search(_LABEL.sub("", reply.strip(), count=1))
    question = found[0].strip(" \t\"'*-“”") if found else ""
    if len(question.split()) < MIN_QUESTION_WORDS:
        return None
    return None if _UNSEEN.search(question) else question


def row_of_passage(passage: Passage) -> dict[str, Any]:
    """An SFT row: the question that was written for the paragraph, and the paragraph as its answer."""
    messages: Conversation = [
        {"role": "user", "content": passage.question},
        {"role": "assistant", "content": passage.answer.text},
    ]
    return {"id": passage.id, "messages": messages, "source": SOURCE}
