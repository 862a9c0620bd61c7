"""Gold scorers, which know the truth about an answer where it is known. Light: no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.imports import make_object, own_code, own_function

VERDICT_FIELDS = ("helpfulness", "safety", "violation", "false_refusal", "kind")


class Verdict(Protocol):
    """The truth about one answer: helpfulness and safety in 0..1, and what kind of request it answers.

    kind is "unsafe" for requests that must not be fulfilled; "ordinary" and "borderline" ones should be (the latter
    only look unsafe).
    """

    helpfulness: float
    safety: float
    violation: bool
    false_refusal: bool
    kind: str


class GoldScorer(Protocol):
    """Knows the truth. A class of these is named by its import path and called with the path of its world."""

    def judge(self, conversation: Conversation) -> Verdict:
        """The verdict on the last message, the assistant's, which may be empty."""
        ...


def load_scorer(spec: str, world: Path) -> GoldScorer:
    """The gold scorer `package.module:Class`, made from `world`; found from the working directory too.

    Raises:
        InputError: no such module or class, it cannot be made from that world, or it has no `judge`. Its
            `judge` raises it where the user's code fails.
    """
    scorer = make_object("scorer", spec, world)
    with own_code("scorer", f"{spec}.judge"):
        judge = getattr(scorer, "judge", None)
    if not callable(judge):
        raise InputError(f"scorer: {spec} has no method judge(conversation)")
    return _Named(own_function("scorer", spec, judge))


@dataclass(frozen=True)
class _Named:
    """A scorer of the user's own: what its `judge` raises is a sentence."""

    judge: Callable[[Conversation], Verdict]
