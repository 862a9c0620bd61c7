"""What a conversation is, and the check of it."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from rlhf.errors import InputError, quoted


class _Marks(TypedDict, total=False):
    train: bool
    finished: bool


class Message(_Marks):
    """One turn. `train` stands only at answers that are context and never trained on, and is False there.

    `finished` stands only at answers that were cut off before their end token, and is False there: as a dialogue's last
    message such an answer has no end, and nobody learns to end there.
    """

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = list[Message]


def check_conversation(
    messages: Any, last: Literal["user", "assistant"] | None = None, *, empty_answers: bool = False
) -> Conversation:
    """Return `messages` as a new list of {role, content}: an optional system message, then user and assistant in turn.

    An answer keeps its `train` and its `finished` where they are False.

    Raises InputError naming the message (1-based) and the value: not a list of objects, an unknown role, an empty
    content, half a character (a lone surrogate), a system message that is not first, roles that do not alternate from
    the user on, another last role.
    `empty_answers` allows an assistant's content to be blank: data must not have that, but a model may say it.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(f"messages: must be a non-empty list of {{role, content}}, got {quoted(messages)}")
    checked: Conversation = []
    expected = "user"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise InputError(f"messages: message {number} must be {{role, content}}, got {quoted(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise InputError(
                f"messages: message {number} has the role {quoted(role)}, must be system, user or assistant"
            )
        blank_allowed = empty_answers and role == "assistant"
        if not isinstance(content, str) or not (content.strip() or blank_allowed):
            raise InputError(
                f"messages: message {number} ({role}) must have a non-empty text as content, got {quoted(content)}"
            )
        check_characters(f"messages: message {number} ({role})", content)
        if role == "system":
            if number != 1:
                raise InputError(f"messages: message {number} is a system message, which may only come first")
        elif role != expected:
            raise InputError(
                f"messages: message {number} is the {role}'s, but it is the {expected}'s turn "
                "(user and assistant take turns)"
            )
        else:
            expected = "assistant" if role == "user" else "user"
        checked.append({"role": role, "content": content})
        if role == "assistant":
            for mark in ("train", "finished"):
                if message.get(mark) is False:
                    checked[-1][mark] = False
    if last is not None and checked[-1]["role"] != last:
        raise InputError(f"messages: the last message must be the {last}'s, got the {checked[-1]['role']}'s")
    if checked[-1]["role"] == "system":
        raise InputError("messages: there is only a system message; add the user's")
    return checked


def check_characters(field: str, text: str, way_out: str = "mend the text or leave the row out") -> None:
    """InputError where a text holds half a character: a surrogate that is no part of a pair, which UTF-8 cannot say."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{field}: holds half a character (a lone surrogate, got {text[error.start]!r} at {error.start + 1}); "
                f"it was cut in the middle of an emoji: {way_out}"
            ) from error


THOUGHT_OPENS, THOUGHT_CLOSES = "<think>", "</think>"
"""How an answer's thoughts stand in a message, whatever tokens the model's own template has for them."""


def split_thoughts(content: str) -> tuple[str, str]:
    """(thoughts, answer) of a content `<think>thoughts</think>answer`; thoughts "" where it does not begin so."""
    text = content.strip()
    if not text.startswith(THOUGHT_OPENS):
        return "", content
    thoughts, closed, answer = text.removeprefix(THOUGHT_OPENS).rpartition(THOUGHT_CLOSES)
    return (thoughts.strip(), answer.strip()) if closed else ("", content)


def with_thoughts(thoughts: str, answer: str) -> str:
    """The content that `split_thoughts` takes apart; the answer alone where there are no thoughts."""
    return f"{THOUGHT_OPENS}\n{thoughts}\n{THOUGHT_CLOSES}\n\n{answer}" if thoughts else answer


def without_thoughts(conversation: Conversation) -> Conversation:
    """The conversation as its user reads it: rewards and judges never see what was thought before an answer."""
    return [
        {**message, "content": split_thoughts(message["content"])[1]} if message["role"] == "assistant" else message
        for message in conversation
    ]
