"""ELI5 and Simple Wikipedia through every filter, one batch after the other: the QLoRA report's data, streamed.

`filtered_posts` and `filtered_passages` give what stays; a `TextFilter` holds the checks and counts what they did. The
memory they need does not grow with the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from rlhf.conversation import Conversation
from rlhf.data.corpus.eli5 import Post
from rlhf.data.corpus.funnel import Funnel, Histogram
from rlhf.data.corpus.readability import count, grade, reading_ease
from rlhf.data.corpus.simple_wikipedia import Article, Passage, passages_of, question_prompt, read_question
from rlhf.data.corpus.text_filters import Answer, FilterConfig, answer_checks, toxicity_check
from rlhf.data.loading import OnBadRow
from rlhf.data.reading import reason
from rlhf.errors import InputError

Item = TypeVar("Item")
Toxicity = Callable[[Sequence[str]], Sequence[float]]
Ask = Callable[[Sequence[Conversation], int], Sequence[str]]

MEASURES: dict[str, tuple[Callable[[Answer], float | None], float, float, int]] = {
    "words": (lambda answer: answer.counts.words, 0, 400, 40),
    "reading ease": (lambda answer: reading_ease(answer.counts), 0, 120, 40),
    "grade": (lambda answer: grade(answer.counts), 0, 20, 40),
    "upvotes": (lambda answer: answer.score, 0, 100, 50),
    "toxicity": (lambda answer: answer.toxicity, 0, 1, 40),
}


class TextFilter:
    """The checks of one source, what they counted, and the distributions of all its answers and of the kept ones.

    Args:
        config: the bounds.
        toxicity: gives each text's; None: nothing is left out for it.
        seed: of the examples.
    """

    def __init__(self, config: FilterConfig, toxicity: Toxicity | None, seed: int = 0) -> None:
        self.config = config
        self.funnel = Funnel(seed)
        self._toxicity = toxicity
        self._checks = answer_checks(config)
        self._histograms = {
            group: {name: Histogram(low, high, bins) for name, (_, low, high, bins) in MEASURES.items()}
            for group in ("all", "kept")
        }

    def readable(self, unit: str, answers: Sequence[Answer]) -> list[Answer]:
        """Those that pass the checks without a model; all of them count in the distributions."""
        self._count("all", answers, [name for name in MEASURES if name != "toxicity"])
        checks = [check for check in self._checks if unit == "answers" or check.name != "upvotes"]
        return [a for a in answers if all(self.funnel.check(check, unit, a) for check in checks)]

    def safe(self, unit: str, answers: Sequence[Answer]) -> list[bool]:
        """Whether each is not too toxic; sets its toxicity."""
        if self._toxicity is None:
            return [True] * len(answers)
        check = toxicity_check(self.config)
        for answer, value in zip(answers, self._toxicity([answer.text for answer in answers]), strict=True):
            answer.toxicity = value
        if unit != "questions":
            self._count("all", answers, ["toxicity"])
        return [self.funnel.check(check, unit, answer) for answer in answers]

    def keep(self, answers: Iterable[Answer]) -> None:
        """Count finished answers in the distributions of the kept ones."""
        self._count("kept", answers, list(MEASURES))

    def _count(self, group: str, answers: Iterable[Answer], names: Sequence[str]) -> None:
        for answer in answers:
            for name in names:
                self._histograms[group][name].add(MEASURES[name][0](answer))

    def figures(self) -> dict[str, Any]:
        """JSON: the steps with their counts and examples, and the distributions."""
        histograms = {
            name: {group: self._histograms[group][name].figures() for group in ("all", "kept")} for name in MEASURES
        }
        return {"steps": self.funnel.figures(), "histograms": histograms}


@dataclass
class Log:
    """How many rows of a source were read, and which could not be, by reason."""

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def parsed(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    parse: Callable[[Mapping[str, Any], str], Item],
    source: str,
    on_bad_row: OnBadRow,
    log: Log,
) -> Iterator[Item]:
    """The rows by `parse`, one at a time.

    A bad one is refused with its number (InputError), or left out and counted by reason.
    """
    for number, row in rows:
        log.read += 1
        try:
            yield parse(row, str(number))
        except InputError as error:
            if on_bad_row == "refuse":
                raise InputError(f"{source}:{number}: {error}") from error
            log.skipped[reason(str(error))] += 1


def filtered_posts(posts: Iterable[Post], filters: TextFilter, rows: int) -> Iterator[Post]:
    """Posts whose question stays, with the answers that stay, possibly none."""
    for batch in batches(posts, rows):
        cleaned = [post for post in batch if _cleaned(post, filters)]
        questions = [Answer(post.question) for post in cleaned]
        stays = filters.safe("questions", questions)
        cleaned = [post for post, stay in zip(cleaned, stays, strict=True) if stay]
        answers = [answer for post in cleaned for answer in post.answers]
        verdicts = iter(filters.safe("answers", answers))
        for post in cleaned:
            post.answers = [answer for answer in post.answers if next(verdicts)]
            filters.keep(post.answers)
            yield post


def _cleaned(post: Post, filters: TextFilter) -> bool:
    """Clean a post in place and drop its unreadable answers; whether a question is left."""
    post.question = filters.funnel.clean("questions", post.question)
    if not filters.funnel.passed("empty", "questions", "a question is left", bool(post.question), post.question):
        return False
    for answer in post.answers:
        answer.text = filters.funnel.clean("answers", answer.text)
    post.answers = filters.readable("answers", post.answers)
    return True


def filtered_passages(
    articles: Iterable[Article], filters: TextFilter, ask: Ask | None, rows: int
) -> Iterator[Passage]:
    """Passages that stay, each with its question.

    Args:
        articles: as they stand in the source.
        filters: of this source.
        ask: gives a model's reply to each prompt; the number says how many were asked before. None: articles bring
            their questions (InputError where one does not).
        rows: passages at once.
    """
    passages = (p for article in articles for p in _passages(article, filters))
    asked = 0
    for batch in batches(passages, rows):
        stays = filters.safe("paragraphs", [passage.answer for passage in batch])
        safe = [passage for passage, stay in zip(batch, stays, strict=True) if stay]
        waiting = [passage for passage in safe if not passage.question]
        if waiting and ask is None:
            raise InputError(
                f"articles: {waiting[0].title!r} brings no question; name the model that writes one with question_model"
            )
        replies = ask([question_prompt(passage) for passage in waiting], asked) if waiting and ask else []
        asked += len(waiting)
        for passage, reply in zip(waiting, replies, strict=True):
            passage.question = read_question(reply) or ""
            rule = "the reply holds a question that stands alone"
            filters.funnel.passed("question written", "paragraphs", rule, bool(passage.question), reply)
        for passage in safe:
            if passage.question:
                filters.keep([passage.answer])
                yield passage


def _passages(article: Article, filters: TextFilter) -> list[Passage]:
    """The readable passages of an article, cleaned; none where the article is too short or too long."""
    config, funnel = filters.config, filters.funnel
    article.text = funnel.clean("articles", article.text)
    if article.question is not None:
        article.question = funnel.clean("questions", article.question)
    length = count(article.text).words
    rule = f"{config.min_article_words} to {config.max_article_words} words"
    kept = config.min_article_words <= length <= config.max_article_words
    if not funnel.passed("length", "articles", rule, kept, article.text, length):
        return []
    passages = passages_of(article)
    readable = filters.readable("paragraphs", [passage.answer for passage in passages])
    kept_ids = {id(answer) for answer in readable}
    return [passage for passage in passages if id(passage.answer) in kept_ids]


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
