"""Whom a judge model is asked about, and what its verdicts make of a version's answers."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.conversation import Conversation
from rlhf.data.rows import Domain
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.policies.judge_model import judged_outcomes
from rlhf.rewards.pair_judge import Opinion

TALK: Conversation = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why {a}?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "And then?"},
]


def test_the_judge_is_spared_what_is_plain() -> None:
    def answers(*texts: str, domain: Domain = "safety") -> list[Answer]:
        return [Answer(f"p{i}", 0, TALK, domain, "test", text, 1, True) for i, text in enumerate(texts)]

    asked: list[Conversation] = []

    def ask(requests: Sequence[Conversation]) -> list[str]:
        asked.extend(requests)
        return ["[[B better]]", "[[A better]]"]

    mine, theirs = answers("same ", "", "text", "", "mine", "alone"), answers("same", "text", " ", "", "theirs")
    judged = judged_outcomes(mine, theirs, {"judge": ask})
    assert judged.outcomes == judged.by_judge["judge"] == [0.5, 0.0, 1.0, 0.5, 0.0, None]
    assert judged.opinions == {"judge": [Opinion(0.0, strength="better")]}
    assert len(asked) == 2
