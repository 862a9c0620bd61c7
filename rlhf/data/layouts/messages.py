"""Lists of messages as people write them, into {role, content}: roles, parts, flags, pairs of turns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf.data.layouts.declaration import REFUSED, assistant, is_empty, named, user
from rlhf.errors import InputError, quoted

SPEAKERS = {  # of a `from`, as ShareGPT and its kin name them
    **dict.fromkeys(("human", "user", "prompter", "Human", "User"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bard", "bing", "Assistant"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ROLES = {"developer": "system", "model": "assistant", "prompter": "user"}
_TOOLS = ("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython")
_TRAIN = ("weight", "train", "loss")
_READ = frozenset({"role", "from", "content", "value", "parts", "refusal", "finished", *_TRAIN})
_HARMLESS = named(
    "id message_id tool_call_id timestamp created created_at language lang country state header "
    "hashed_ip turn turn_identifier redacted num_tokens annotations"
)
_PLAIN = {"role", "content"}


def messages_of(value: Any, unused: Counter[str], field: str = "messages") -> Any:
    """The messages of a field: a list of them, one alone, JSON text of a list, pairs {input, output}, or texts in turn.

    `from` and `value` become role and content, a developer is the system, parts of text are joined by line breaks, an
    empty system message is dropped; an answer with `weight: 0`, `train: false` or `loss: false` gets `train: False`,
    one with `finished: false` keeps it.
    What is no message is left for `rlhf.conversation.messages.check_conversation` to refuse.

    Args:
        value: as it stands in the row.
        unused: names of messages' fields that are not read are added, once a list.
        field: its name.

    Raises:
        InputError: a tool's message or call, reasoning apart from content, a part that is no text, an unknown flag.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_list(value)
    if isinstance(value, dict):
        value = value["messages"] if isinstance(value.get("messages"), list) else [value]
    if not isinstance(value, (list, tuple)):
        return value
    if value and all(isinstance(item, str) for item in value):
        return [user(text) if i % 2 == 0 else assistant(text) for i, text in enumerate(value)]
    messages: list[Any] = []
    names: set[str] = set()
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or (
            message.keys() == _PLAIN and isinstance(message["content"], str) and message["role"] == "user"
        ):
            messages.append(message)
        elif message.keys() == {"input", "output"}:
            messages += [user(message["input"]), assistant(message["output"])]
        else:
            read = _message(message, f"{field}: message {number}", names)
            if read["role"] != "system" or not is_empty(read["content"]):
                messages.append(read)
    unused.update(f"{name} of messages" for name in sorted(names))
    return messages


def _message(message: dict[str, Any], where: str, unused: set[str]) -> dict[str, Any]:
    role = message.get("role")
    if role is None and "from" in message:
        role = SPEAKERS.get(str(message["from"]), message["from"])
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role in _TOOLS:
        raise InputError(f"{where} is a tool's, got {quoted(role)}; tool calls are not supported; leave such rows out")
    content = next((message[name] for name in ("content", "value", "parts") if message.get(name) is not None), None)
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    for name, value in message.items():
        if name in _READ or name in _HARMLESS or is_empty(value):
            continue
        if name in REFUSED:
            raise InputError(f"{where} has {name}: {REFUSED[name]}, got {quoted(value)}")
        unused.add(str(name))
    read = {"role": role, "content": _text(content, where)}
    if not _trained(message, role, where):
        read["train"] = False
    if message.get("finished") is False and role == "assistant":
        read["finished"] = False
    return read


def _text(content: Any, where: str) -> Any:
    """The text of a content that may be a list of parts."""
    if not isinstance(content, (list, tuple)):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "no text") if isinstance(part, dict) else part
            raise InputError(f"{where} has a part that is no text, got {quoted(kind)}; only text is read")
        texts.append(text)
    return "\n".join(texts)


def _trained(message: dict[str, Any], role: Any, where: str) -> bool:
    """False where a flag says that this answer is not to be trained on."""
    trained = True
    for name in _TRAIN:
        flag = message.get(name)
        if flag is None or role != "assistant":
            continue
        if not isinstance(flag, (bool, int, float)) or flag not in (0, 1):
            raise InputError(f"{where} has {name}: must be 0 (false: not trained on) or 1 (true), got {quoted(flag)}")
        trained = trained and bool(flag)
    return trained


def _json_list(text: str) -> Any:
    """The list that a text spells out in JSON, as tables keep it; the text itself where it is none of messages."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    of_messages = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return value if of_messages else text


def with_system(system: Any, messages: Any) -> Any:
    """The messages with a system column's text before them; InputError where they have another one of their own."""
    if not isinstance(messages, list) or is_empty(system):
        return messages
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role") == "system":
        if first.get("content") != system:
            raise InputError(f"system: the messages have a system message of their own, got {quoted(system)}; keep one")
        return messages
    return [{"role": "system", "content": system}, *messages]


def with_history(history: Any, messages: Any) -> Any:
    """The messages with earlier turns before them: a list of [user's message, answer]."""
    if not isinstance(messages, list) or is_empty(history):
        return messages
    turns: list[Any] = []
    for number, pair in enumerate(history if isinstance(history, Sequence) else [history], start=1):
        if not isinstance(pair, (list, tuple)) or isinstance(pair, str) or len(pair) != 2:
            raise InputError(f"history: turn {number} must be [user's message, answer], got {quoted(pair)}")
        turns += [user(pair[0]), assistant(pair[1])]
    return [*turns, *messages]
