"""Training rows for the eye: what a model will read, what of it is trained, and where the instruction stands."""

from __future__ import annotations

from itertools import groupby
from typing import cast

from rlhf.conversation import Conversation, Renderer

TRAINED, INSTRUCTION, END = "\x1b[1;32m", "\x1b[33m", "\x1b[0m"


def coloured(renderer: Renderer, dialogue: Conversation, instruction: str) -> str:
    """The dialogue as its ids read, the instruction yellow and what the loss is on (the last answer) bold green."""
    rendered = renderer.dialogue(dialogue, train="last")
    text = ""
    for trained, pairs in groupby(zip(rendered.loss_mask, rendered.input_ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in pairs]
        part = cast(str, renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        text += f"{TRAINED}{part}{END}" if trained else part.replace(instruction, f"{INSTRUCTION}{instruction}{END}")
    return text
