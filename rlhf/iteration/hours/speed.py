"""Work in tokens, speed in seconds; one times the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """Seconds of n things done at once: fixed + n * each."""

    fixed: float
    each: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """Of one (n, seconds) in proportion; of two the line through both, neither part of it below 0."""
        (n, seconds), (more, longer) = points[0], points[-1]
        if more <= n or longer <= seconds:
            return cls(0.0, max(seconds / n, longer / more))
        each = min((longer - seconds) / (more - n), longer / more)
        return cls(longer - more * each, each)

    def seconds(self, times: float, things: float) -> float:
        """Of `things` done in `times` goes."""
        return times * self.fixed + things * self.each


@dataclass(frozen=True)
class Speed:
    """What one process of a machine does with one model.

    Args:
        load: seconds to load it.
        score: a forward pass, by its tokens.
        train: forward and backward, by its tokens.
        decode: one step of writing, by the answers written at once.
    """

    load: float
    score: Line
    train: Line
    decode: Line

    @classmethod
    def of(cls, content: Any) -> Speed:
        """From plain JSON, as `dataclasses.asdict` makes it."""
        return cls(content["load"], *(Line(**content[name]) for name in ("score", "train", "decode")))


@dataclass(frozen=True)
class Work:
    """What a stage has to do, all processes together.

    Args:
        loads: models loaded, in every process.
        score_passes, score_tokens: forward passes, and their tokens.
        train_passes, train_tokens: the same of training.
        steps, answer_tokens: steps of writing answers, and the tokens written.
    """

    loads: float = 0.0
    score_passes: float = 0.0
    score_tokens: float = 0.0
    train_passes: float = 0.0
    train_tokens: float = 0.0
    steps: float = 0.0
    answer_tokens: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * part for part in astuple(self)))

    def seconds(self, speed: Speed, processes: int = 1) -> float:
        """Of wall time, where `processes` share it evenly."""
        shared = speed.score.seconds(self.score_passes, self.score_tokens)
        shared += speed.train.seconds(self.train_passes, self.train_tokens)
        shared += speed.decode.seconds(self.steps, self.answer_tokens)
        return self.loads * speed.load + shared / processes


def scored(rows: float, tokens: float, at_once: float = 8) -> Work:
    """Forward passes of rows with so many tokens each."""
    return Work(score_passes=rows / at_once, score_tokens=rows * tokens)


def trained(rows: float, tokens: float, at_once: float, epochs: float = 1) -> Work:
    """Training on rows with so many tokens each."""
    return Work(train_passes=epochs * rows / at_once, train_tokens=epochs * rows * tokens)


def written(answers: float, tokens: float, at_once: float, most: float) -> Work:
    """Answers of so many tokens each, `most` at most; a finished one makes room for the next, and the last are few."""
    steps = tokens * answers / at_once + (most - tokens) if answers else 0.0
    return Work(steps=max(steps, min(answers, 1) * most), answer_tokens=answers * tokens)
