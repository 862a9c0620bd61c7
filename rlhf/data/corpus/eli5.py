"""ELI5: Reddit posts with their answers and upvotes, from the published sets or from raw dumps.

A post is a row with `title` (and `selftext`) whose `answers` are {"text": [...], "score": [...]}, as the Hugging Face
sets `eli5` and `eli5_category` have them, or a list of {"text" or "body", "score"}. In raw dumps (Pushshift) posts and
comments lie in two files: `attach_comments` joins them; a comment is an answer where it answers the post itself. A row
of Dolly (`instruction`, `context`, `response`) is a question with one answer on which nobody voted.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.conversation import Conversation
from rlhf.data.corpus.text_filters import Answer
from rlhf.data.layouts.conversations import alpaca_question
from rlhf.data.layouts.pairing import ranked_pairs
from rlhf.data.rows import Preference, Prompt
from rlhf.errors import InputError

SOURCE, DOLLY = "eli5", "dolly"
GONE = ("", "[deleted]", "[removed]")  # what Reddit leaves of a text that its author or a moderator took back
_TAG = re.compile(r"^[\s\[(*]*eli\s?-?5\b[\s\])*]*[:,;.\-–—]*\s*", re.IGNORECASE)

Kind = Literal["sft", "preferences", "prompts"]
Row = Mapping[str, Any]


@dataclass
class Post:
    """A question (title and text) and the answers to it; `source`: of its rows."""

    id: str
    question: str
    answers: list[Answer]
    source: str = SOURCE


def post_of(row: Row, post_id: str) -> Post:
    """A row as a post, texts as they stand, without answers that are gone; an empty question where the post's is.

    Raises:
        InputError: no title, answers of another form, a score that is no number.
    """
    if "instruction" in row and "title" not in row:
        return _dolly_post(row, post_id)
    title, body = row.get("title"), row.get("selftext") or ""
    if not isinstance(title, str) or not isinstance(body, str):
        raise InputError(f"title, selftext: must be texts, got {title!r:.60} and {body!r:.60}")
    question = "" if title.strip() in GONE or body.strip() in GONE[1:] else f"{_TAG.sub('', title)}\n\n{body}".strip()
    answers = [answer for answer in _answers(row.get("answers")) if answer.text.strip() not in GONE]
    return Post(str(row.get("id") or row.get("q_id") or post_id), question, answers)


def _dolly_post(row: Row, post_id: str) -> Post:
    response = row.get("response")
    if not isinstance(response, str):
        raise InputError(f"response: must be a text, got {response!r:.60}")
    answers = [Answer(response)] if response.strip() else []
    return Post(str(row.get("id") or post_id), alpaca_question(row).strip(), answers, DOLLY)


def _answers(answers: Any) -> list[Answer]:
    if isinstance(answers, Mapping) and {"text", "score"} <= answers.keys():
        texts, scores = answers["text"], answers["score"]
        if not (isinstance(texts, list) and isinstance(scores, list)):
            raise InputError(f"answers: text and score must be lists, got {texts!r:.60} and {scores!r:.60}")
        if len(texts) != len(scores):
            raise InputError(f"answers: {len(texts)} texts but {len(scores)} scores")
        pairs = list(zip(texts, scores, strict=True))
    elif isinstance(answers, Sequence) and all(isinstance(answer, Mapping) for answer in answers):
        pairs = [(answer.get("text", answer.get("body")), answer.get("score")) for answer in answers]
    else:
        raise InputError(f"answers: must be texts and scores, or a list of {{text, score}}, got {answers!r:.60}")
    return [_answer(text, score) for text, score in pairs]


def _answer(text: Any, score: Any) -> Answer:
    if not isinstance(text, str):
        raise InputError(f"answers: each must have a text, got {text!r:.60}")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise InputError(f"answers: a score must be a number, got {score!r}")
    return Answer(text, float(score))


def attach_comments(
    posts: Iterable[tuple[int, Row]], comments: Iterable[tuple[int, Row]], database: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each post with the comments that answer it (their parent is the post), as rows that `post_of` takes.

    The comments go through a database on the disk, so memory does not grow with them.

    Args:
        posts: (number, submission), with `id`.
        comments: (number, comment), with `link_id`, `parent_id`, `body`, `score`.
        database: a file to make; it is removed in the end.

    Raises:
        InputError: a comment or a submission without these fields, with the number of its row.
    """
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("CREATE TABLE comments (post TEXT, body TEXT, score REAL)")
            connection.executemany("INSERT INTO comments VALUES (?, ?, ?)", _direct(comments))
            connection.execute("CREATE INDEX by_post ON comments (post)")
            for number, post in posts:
                if not isinstance(post.get("id"), str):
                    raise InputError(f"post {number}: id: must be a text, got {post.get('id')!r}")
                found = connection.execute(
                    "SELECT body, score FROM comments WHERE post = ? ORDER BY rowid", (post["id"],)
                )
                yield number, {**post, "answers": [{"text": body, "score": score} for body, score in found]}
    finally:
        database.unlink(missing_ok=True)


def _direct(comments: Iterable[tuple[int, Row]]) -> Iterator[tuple[str, str, float]]:
    for number, row in comments:
        values = [row.get(name) for name in ("link_id", "parent_id", "body", "score")]
        if not all(isinstance(v, str) for v in values[:3]) or not isinstance(values[3], (int, float)):
            raise InputError(f"comment {number}: needs link_id, parent_id, body and score, got {values!r:.120}")
        link, parent, body, score = values
        if parent == link:
            yield str(link).removeprefix("t3_"), str(body), float(score)  # type: ignore[arg-type]


def rows_of_post(post: Post) -> tuple[Kind, list[dict[str, Any]]]:
    """What a filtered post is good for, as rows of `rlhf.data.rows` or {"id", "messages", "source"}.

    One answer: a dialogue for SFT. Several of different score: preference pairs, the higher score chosen, at most
    `rlhf.data.open_preferences.MAX_PAIRS` (a score has no scale here, so no strength). The rest, without an answer or
    with several of one score, is a prompt. Answers of equal text count once, with the highest score.
    """
    messages: Conversation = [{"role": "user", "content": post.question}]
    best: dict[str, float] = {}
    for answer in post.answers:
        best[answer.text] = max(answer.score or 0.0, best.get(answer.text, -math.inf))
    if len(best) == 1:
        answered: Conversation = [*messages, {"role": "assistant", "content": next(iter(best))}]
        return "sft", [{"id": post.id, "messages": answered, "source": post.source}]
    if len(set(best.values())) > 1:
        pairs = ranked_pairs(post.question, list(best.items()), "score", width=None)
        return "preferences", [
            Preference(f"{post.id}.{i}", messages, pair["chosen"], pair["rejected"], source=post.source).to_dict()
            for i, pair in enumerate(pairs, start=1)
        ]
    return "prompts", [Prompt(post.id, messages, source=post.source).to_dict()]
