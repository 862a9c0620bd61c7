"""One row of anybody's format into ours. Pure functions of a dict; InputError names the field and the value.

Preferences: our own rows; HH (`chosen` and `rejected` are whole dialogues as text); trl conversational and plain, with
a `prompt` or with it inside `chosen` and `rejected`. Conversations: `messages`, or `prompt` and `completion`; Dolly and
Alpaca rows (`instruction`, what it is about, the answer); Open Assistant trees, of which the best-ranked path is taken.
Prompts: our own rows, `messages`, `prompt` (text, HH dialogue or messages) or `text`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from rlhf.conversation import Conversation, Message, check_conversation
from rlhf.data.rows import Preference, Prompt
from rlhf.errors import InputError

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}


def parse_hh(dialogue: str) -> Conversation:
    """The turns of `\\n\\nHuman: …\\n\\nAssistant: …`, each stripped; roles and contents are not checked here.

    Where a speaker's mark follows his own (answers of about 25 dialogues of the test parts spell it out), it is one
    turn and the mark is dropped.
    """
    parts = _HH_TURN.split(dialogue)
    if len(parts) == 1 or parts[0].strip():
        raise InputError(f"dialogue: must begin with two line breaks and 'Human:', got {dialogue[:60]!r}")
    turns: list[Message] = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = _HH_ROLES[speaker]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content.strip()}".strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns


def is_hh(value: Any) -> bool:
    """Whether the value is a dialogue in HH's text format."""
    return isinstance(value, str) and bool(_HH_TURN.match(value))


def preference_of(row: Mapping[str, Any]) -> Preference:
    """A preference row of any known format; `id` must be there."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    prompt = _prompt_messages(row)
    if is_hh(chosen) and is_hh(rejected) and prompt is None:
        chosen, rejected = parse_hh(cast(str, chosen)), parse_hh(cast(str, rejected))
    if isinstance(chosen, list) and isinstance(rejected, list):
        messages, chosen, rejected = _parted(prompt, chosen, rejected)
    elif prompt is None:
        raise InputError(
            f"row: not a preference; needs messages, chosen and rejected, or prompt, chosen and rejected, or two whole "
            f"dialogues as chosen and rejected; its fields are {_fields(row)}"
        )
    else:
        messages = prompt
    return Preference.from_dict({**row, "messages": messages, "chosen": chosen, "rejected": rejected})


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """A prompt row of any known format; `id` must be there."""
    messages = _prompt_messages(row)
    if messages is None:
        if "text" not in row:
            raise InputError(f"row: not a prompt; needs messages, prompt or text; its fields are {_fields(row)}")
        messages = _user(row["text"])
    return Prompt.from_dict({**row, "messages": messages})


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """A dialogue that ends with the assistant's answer."""
    if "messages" in row:
        return check_conversation(row["messages"], last="assistant")
    if "instruction" in row and ("response" in row or "output" in row):
        about = row.get("context") or row.get("input") or ""
        answer = {"role": "assistant", "content": row.get("response", row.get("output"))}
        question = f"{about}\n\n{row['instruction']}" if about else row["instruction"]
        return check_conversation([*_user(question), answer], last="assistant")
    if "message_tree_id" in row:
        return check_conversation(_best_path(row.get("prompt")), last="assistant")
    prompt, completion = _prompt_messages(row), row.get("completion")
    if prompt is None or completion is None:
        raise InputError(
            f"row: not a conversation; needs messages, or prompt and completion; its fields are {_fields(row)}"
        )
    answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    return check_conversation([*prompt, *answer], last="assistant")


def _best_path(node: Any) -> list[Any]:
    """Messages of an Open Assistant tree from its root along the best-ranked replies, up to the last answer."""
    messages: list[Any] = []
    while isinstance(node, dict):
        role = "assistant" if node.get("role") == "assistant" else "user"
        messages.append({"role": role, "content": node.get("text")})
        replies = node.get("replies") or []
        node = min(replies, key=lambda reply: math.inf if reply.get("rank") is None else reply["rank"], default=None)
    return messages[:-1] if messages and messages[-1]["role"] == "user" else messages


def text_of(row: Mapping[str, Any]) -> str:
    """The row's `text`."""
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"text: must be a non-empty text, got {text!r:.60}; the row's fields are {_fields(row)}")
    return text


def _fields(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row if name not in ("id", "domain", "source")) or "none"


def _user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def _prompt_messages(row: Mapping[str, Any]) -> list[Any] | None:
    """Messages of `messages` or `prompt`, unchecked; None where the row has neither."""
    if "messages" in row:
        return cast("list[Any]", row["messages"])
    prompt = row.get("prompt")
    if prompt is None or isinstance(prompt, list):
        return prompt
    if not is_hh(prompt):
        return _user(prompt)
    turns = parse_hh(prompt)
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def _parted(prompt: list[Any] | None, chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], Any, Any]:
    """(messages before the answers, chosen answer, rejected answer) of two lists of messages."""
    messages = []
    for name, answers in (("chosen", chosen), ("rejected", rejected)):
        last = answers[-1] if answers else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise InputError(f"{name}: must be messages that end with the assistant's answer, got {answers!r:.60}")
        whole_dialogue = prompt is None or len(answers) > 1
        messages.append(answers[:-1] if whole_dialogue else prompt)
    if messages[0] != messages[1]:
        turn = next((i for i, (a, b) in enumerate(zip(*messages, strict=False), start=1) if a != b), None)
        where = f"at message {turn}" if turn else "in their number of messages"
        raise InputError(f"chosen, rejected: the two dialogues part before the last answer, {where}")
    return cast("list[Any]", messages[0]), chosen[-1].get("content"), rejected[-1].get("content")
