"""Lists of messages as people write them, into {role, content}: roles, parts, flags, pairs of turns."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf.data.layouts.declaration import TRAIN, assistant, is_empty, named, require_harmless, user
from rlhf.errors import InputError, quoted

SPEAKERS = {  # of a `from`, as ShareGPT and its kin name them
    **dict.fromkeys(("human", "user", "prompter", "Human", "User"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bard", "bing", "Assistant"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ROLES = {"developer": "system", "model": "assistant", "prompter": "user"}
_TOOLS = ("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython", "environment")
_READ = frozenset({"role", "from", "content", "value", "parts", "refusal", "finished", *TRAIN})
_HARMLESS = named(
    "id message_id tool_call_id timestamp created created_at language lang country state header "
    "hashed_ip turn turn_identifier redacted num_tokens annotations"
)
_PLAIN = {"role", "content"}
_TURNS = (  # a user's message and the answer, as one object
    ("input", "output"),
    *((asked, said) for asked in ("human", "user") for said in ("assistant", "gpt", "bot")),
)
_CONTENTS = ("content", "value", "parts")
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_HARMLESS_OF_PARTS = named("type text mimeType cache_control annotations")
_PRINTED = re.compile(r"\[?\s*\{'(role|from|content|value)': ")


def messages_of(value: Any, unused: Counter[str], field: str = "messages", *, dropped: bool = False) -> Any:
    """The messages of a field: a list of them, one alone, JSON text of these, pairs {input, output}, or texts in turn.

    `from` and `value` become role and content, a developer is the system, parts of text are joined by line breaks, an
    empty system message is dropped; an answer with `weight: 0`, `train: false` or `loss: false` gets `train: False`,
    one with `finished: false` keeps it.
    What is no message is left for `rlhf.conversation.messages.check_conversation` to refuse.

    Args:
        value: as it stands in the row.
        unused: names of messages' fields that are not read are added, once a list.
        field: its name.
        dropped: a last answer will be left off: nothing of it is read.

    Raises:
        InputError: a tool's message or call, reasoning apart from content, a part that is no text, an unknown flag, two
            contents, or messages as Python prints them.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = _spelled_out(value, field)
    if isinstance(value, dict):
        value = _unwrapped(value, field, unused) if isinstance(value.get("messages"), list) else [value]
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
        elif turn := next((names for names in _TURNS if message.keys() == set(names)), None):
            messages += [user(message[turn[0]]), assistant(message[turn[1]])]
        elif dropped and number == len(value) and _role(message) == "assistant":
            messages.append(assistant("(left off)"))
        else:
            read = _message(message, f"{field}: message {number}", names)
            if read["role"] != "system" or not is_empty(read["content"]):
                messages.append(read)
    unused.update(f"{name} of messages" for name in sorted(names))
    return messages


def _role(message: dict[str, Any]) -> Any:
    role = message.get("role")
    if role is None and "from" in message:
        role = SPEAKERS.get(str(message["from"]), message["from"])
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _message(message: dict[str, Any], where: str, unused: set[str]) -> dict[str, Any]:
    role = _role(message)
    if role in _TOOLS:
        raise InputError(f"{where} is a tool's, got {quoted(role)}; tool calls are not supported; leave such rows out")
    given = {name: message[name] for name in _CONTENTS if message.get(name) not in (None, "", [])}
    content = next(iter(given.values()), message.get("content"))
    if any(other != content for other in given.values()):
        raise InputError(f"{where} has {' and '.join(given)}, which differ; keep one")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    for name, value in message.items():
        if name in _READ or name in _HARMLESS or is_empty(value):
            continue
        if name in ("mask", "masked") and role != "assistant":  # nobody trains on it
            continue
        require_harmless(name, value, where)
        unused.add(str(name))
    read = {"role": role, "content": _text(content, where, unused)}
    if not _trained(message, role, where):
        read["train"] = False
    if message.get("finished") is False and role == "assistant":
        read["finished"] = False
    return read


def _text(content: Any, where: str, unused: set[str]) -> Any:
    """The text of a content that may be a list of parts."""
    if not isinstance(content, (list, tuple)):
        return content
    texts = []
    for part in content:
        fields = part if isinstance(part, dict) else {"text": part}
        text = fields.get("text")
        if not isinstance(text, str) or fields.get("type") not in _TEXT_PARTS:
            kind = part.get("type", "no text") if isinstance(part, dict) else part
            raise InputError(f"{where} has a part that is no text, got {quoted(kind)}; only text is read")
        for name, value in fields.items():
            if name not in _HARMLESS_OF_PARTS and not is_empty(value):
                require_harmless(name, value, f"{where} has a part that")
                unused.add(f"{name} of parts")
        texts.append(text)
    return "\n".join(texts)


def _unwrapped(value: dict[str, Any], field: str, unused: Counter[str]) -> Any:
    """The messages of an object that holds them beside other things, such as tools."""
    for name, other in value.items():
        if name not in ("messages", "parallel_tool_calls") and not is_empty(other):
            require_harmless(name, other, field)
            unused[f"{name} of {field}"] += 1
    return value["messages"]


def _trained(message: dict[str, Any], role: Any, where: str) -> bool:
    """False where a flag says that this answer is not to be trained on."""
    trained = True
    for name in TRAIN:
        flag = message.get(name)
        if flag is None or role != "assistant":
            continue
        if not isinstance(flag, (bool, int, float)) or flag not in (0, 1):
            raise InputError(f"{where} has {name}: must be 0 (false: not trained on) or 1 (true), got {quoted(flag)}")
        trained = trained and bool(flag)
    return trained


def _spelled_out(text: str, field: str) -> Any:
    """The messages that a text spells out in JSON, as tables keep them; the text itself where they are none.

    An answer may be JSON too: messages have a speaker and what is said.
    """
    if _PRINTED.match(text.lstrip()):
        raise InputError(
            f"{field}: holds messages as Python prints them, which are not read, got {quoted(text)}; write them as JSON"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    items = value if isinstance(value, list) else [value]
    pairs = field.startswith("conversation") and all(_has(item, "input", "output") for item in items)
    said = any(_has(item, "role", "content") or _has(item, "from", "value") for item in items)
    return value if pairs or said else text


def _has(item: Any, *names: str) -> bool:
    return isinstance(item, dict) and item.keys() >= set(names)


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
