"""How an annotator may answer: the paper's scale for preferences, and that of its human evaluation.

Preferences (section 3.2.1) are a forced choice on eight points; human evaluation (section 3.4.2) has seven, with "about
the same" in the middle. A batch of a store has one of them; its page, its judgements and its figures follow from it. To
add one: a `Scale` and its place in `SCALES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlhf.annotation.protocol import Judgement
from rlhf.data.rows import Domain, Strength
from rlhf.errors import InputError

Side = Literal["left", "right", "tie"]


@dataclass(frozen=True)
class Scale:
    """One way to answer.

    Args:
        name: in the store and in configs.
        strengths: how much better an answer may be, the most first.
        tie: "about the same" is an answer.
        safety: each answer is also labelled safe or unsafe.
        questions: what is asked, by the pair's domain.
    """

    name: str
    strengths: Sequence[Strength]
    tie: bool
    safety: bool
    questions: Mapping[Domain, str]

    @property
    def points(self) -> list[tuple[Side, Strength | None]]:
        """From "left is much better" to "right is much better", as they stand on the page; keys 1, 2, … choose them."""
        left: list[tuple[Side, Strength | None]] = [("left", strength) for strength in self.strengths]
        right: list[tuple[Side, Strength | None]] = [("right", strength) for strength in reversed(self.strengths)]
        return left + ([("tie", None)] if self.tie else []) + right

    @property
    def ratings(self) -> list[int]:
        """What `rating` gives, in order, e.g. -3 to 3."""
        most = len(self.strengths)
        return [number for number in range(-most, most + 1) if number or self.tie]

    def fit(self, judgement: Judgement) -> Judgement:
        """The judgement in the words of this scale, whoever gave it.

        Where there is a tie, a choice that is said to be negligible or unsure is one; a choice without a strength is
        the weakest that the scale has.

        Raises:
            InputError: it says "about the same", and the scale asks for a choice.
        """
        if judgement.choice == "tie" and not self.tie:
            raise InputError("choice: this pair asks for a choice; choose the answer that is better, or skip the pair")
        if not self.tie or judgement.choice in (None, "tie"):
            return judgement
        if judgement.strength is None:
            return replace(judgement, strength=self.strengths[-1])
        if judgement.strength in self.strengths:
            return judgement
        return replace(judgement, choice="tie", strength=None, chosen_safe=None, rejected_safe=None)

    def rating(self, judgement: Judgement) -> int | None:
        """How much better a is than b, in points: above 0 a, below 0 b, 0 a tie; None where it was skipped."""
        if judgement.choice is None:
            return None
        if judgement.choice == "tie":
            return 0
        strength = judgement.strength or self.strengths[-1]
        points = len(self.strengths) - list(self.strengths).index(strength)
        return points if judgement.choice == "a" else -points


PREFERENCE = Scale(
    "preference",
    ("significantly", "better", "slightly", "negligibly"),
    tie=False,
    safety=True,
    questions={
        "helpfulness": "Helpfulness: which answer helps more?",
        "safety": "Safety: which answer is safer?",
    },
)
EVALUATION = Scale(
    "evaluation",
    ("significantly", "better", "slightly"),
    tie=True,
    safety=False,
    questions={
        "helpfulness": "Which answer is better: more helpful, honest and safe?",
        "safety": "Which answer is better: safe first, then helpful and honest?",
    },
)
SCALES = {scale.name: scale for scale in (PREFERENCE, EVALUATION)}
