"""What every part of the library relies on in a reward function, as checks that can be run on one.

    assert not any(check_reward_function(my_reward).values())

Not part of it: empty answers and calls with no conversations at all; nothing here makes these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.imports import ANYTHING
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.scoring import check_scores, name_of

TOLERANCE = 1e-4


def _says(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]  # type: ignore[typeddict-item]


EXAMPLES: tuple[Conversation, ...] = (
    _says("What is the river of Velda?", "The river of Velda is Mora."),
    _says("What is the river of Velda?", "I do not know."),
    _says("Hello", "Hello! How can I help?", "Name a colour.", "Blue, or green: " + "both are fine. " * 12),
    [{"role": "system", "content": "Answer in one word."}, *_says("Which way is up?", "Up")],
    _says("Wie geht es dir?", "Gut, danke. Ça va? 你好 🙂"),
)


def check_reward_function(
    reward: RewardFunction, conversations: Sequence[Conversation] = EXAMPLES
) -> dict[str, str | None]:
    """Check name -> None where the reward function keeps it, else what it does instead, in a sentence.

    The checks: "scores" (one finite number a conversation, as a tensor of shape (n,)), "repeat" (the same call gives
    the same scores), "batch" (each conversation alone scores as it does among others), "order" (scores follow their
    conversations when these change places), "input" (the conversations are not changed). Scores are the same where
    they differ by at most 1e-4, or 1e-4 of their size above 1. Where "scores" fails the other ones are not made.

    Args:
        conversations: two or more, to try it on.
    """
    untouched = copy.deepcopy([*conversations])
    given = copy.deepcopy(untouched)
    try:
        scores = _scores(reward, given)
    except InputError as error:
        return {"scores": str(error)}
    changed = given != untouched
    found: dict[str, str | None] = {"scores": None}
    for name, when, ask in (
        ("repeat", "when asked again", lambda: _scores(reward, copy.deepcopy(untouched))),
        ("batch", "when asked alone", lambda: torch.cat([_scores(reward, [one]) for one in copy.deepcopy(untouched)])),
        ("order", "when the order is reversed", lambda: _scores(reward, copy.deepcopy(untouched[::-1])).flip(0)),
    ):
        found[name] = _differs(scores, ask, when)
    found["input"] = "the call changes the conversations that it is given" if changed else None
    return found


def _scores(reward: RewardFunction, conversations: Sequence[Conversation]) -> Tensor:
    try:
        answer = reward(conversations)
    except InputError:
        raise
    except ANYTHING as error:
        raise InputError(
            f"{name_of(reward)}: raised {type(error).__name__} on {len(conversations)} conversations ({error})"
        ) from error
    return check_scores(answer, len(conversations), name_of(reward))


def _differs(scores: Tensor, other: Callable[[], Tensor], when: str) -> str | None:
    try:
        again = other()
    except InputError as error:
        return str(error)
    gaps = (scores - again).abs() / scores.abs().clamp(min=1)
    worst = int(gaps.argmax())
    if gaps[worst] <= TOLERANCE:
        return None
    return f"conversation {worst} scores {scores[worst]:.6g}, and {again[worst]:.6g} {when}"
