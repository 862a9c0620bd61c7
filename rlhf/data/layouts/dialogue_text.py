"""Dialogues written as one text: HH, DeepSpeed-Chat's one line, Guanaco's headings."""

from __future__ import annotations

import re
from typing import Any, Literal

from rlhf.conversation import Conversation, Message
from rlhf.errors import InputError, quoted

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_LINE_TURN = re.compile(r"(?:^|\s)(Human|Assistant):(?=\s|$)")
_GUANACO_TURN = re.compile(r"(?:^|\n?)### (Human|Assistant):")
_MARKS = (
    r"<\|im_start\|>|<\|start_header_id\|>|<\|start_of_role\|>|<start_of_turn>|<\|(?:user|system|assistant)\|>|\[INST\]"
)
_RENDERED = re.compile(rf"{_MARKS}|### (?:Instruction|Response|User):")
_BEGINNING = re.compile(rf"(?:<s>|<bos>|<\|begin_of_text\|>)?\s?(?:{_MARKS})")
_SPELT = re.compile(
    r"<\|\w{2,40}\|>|<｜[^｜<>]{2,40}｜>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>|\[/?INST\]|<</?SYS>>"
)
_HEADINGS = ("### Response:", "### Assistant:")
_ROLES: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}


def parse_hh(dialogue: str) -> Conversation:
    """The turns of `\\n\\nHuman: …\\n\\nAssistant: …`, each stripped; roles and contents are not checked here.

    Where a speaker's mark follows his own (answers of about 25 dialogues of the test parts spell it out), it is one
    turn and the mark is dropped.
    """
    parts = _HH_TURN.split(dialogue)
    if len(parts) == 1 or parts[0].strip():
        raise InputError(f"dialogue: must begin with two line breaks and 'Human:', got {quoted(dialogue)}")
    return _turns(parts)


def _turns(parts: list[str]) -> Conversation:
    turns: list[Message] = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = _ROLES[speaker]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content.strip()}".strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns


def marks_in(text: str) -> set[str]:
    """What a text spells out that begins or ends something in a chat format: `<|im_end|>`, `</s>`, `[INST]`, …"""
    return set(_SPELT.findall(text))


def is_hh(value: Any) -> bool:
    """Whether the value is a dialogue in HH's text format."""
    return isinstance(value, str) and bool(_HH_TURN.match(value))


def turns_of_prompt(prompt: str) -> list[Any] | None:
    """The turns of a prompt that is a dialogue in HH's format, or `Human: … Assistant:` in one line; None: it is not.

    The open mark of the answer to come is dropped.

    Raises:
        InputError: it begins, or ends, as a prompt rendered in a model's chat format does.
    """
    if is_hh(prompt):
        turns = parse_hh(prompt)
    elif prompt.lstrip().startswith("Human:") and prompt.rstrip().endswith("Assistant:"):
        turns = _turns(_LINE_TURN.split(prompt))
    else:
        found = _BEGINNING.match(prompt.lstrip())
        heading = next((one for one in _HEADINGS if prompt.rstrip().endswith(one)), None)
        if mark := found.group() if found else heading:
            raise InputError(f"prompt: is rendered in a chat format already, got {quoted(mark)}; give its messages")
        return None
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def turns_of_text(text: str) -> list[Any] | None:
    """The turns of a text that is a whole dialogue (HH's or Guanaco's format); None: it is not.

    Raises:
        InputError: it is rendered in a model's chat format, which would be trained on as plain text.
    """
    if is_hh(text):
        return parse_hh(text)
    if text.lstrip().startswith("### Human:"):
        return _turns(_GUANACO_TURN.split(text))
    found = _RENDERED.search(text)
    if found:
        raise InputError(
            f"text: is a dialogue rendered in a chat format already, got {quoted(found.group())}; give its messages"
        )
    return None
