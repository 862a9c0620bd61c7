"""Dialogues cut to a length: what is dropped first, what stays, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlhf.conversation.messages import Conversation, Message
from rlhf.conversation.pieces import Pieces
from rlhf.errors import InputError, quoted


@dataclass(frozen=True)
class Rendered:
    """A dialogue as token ids; `loss_mask[i]`: token i belongs to a trained answer or is its end token.

    `cut`: it was too long, and has lost its oldest turns, or more.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    cut: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Measured(Rendered):
    """`lengths`: tokens of each user's and assistant's message with what the template writes around it."""

    lengths: list[int] = field(default_factory=list)


class TooLongError(InputError):
    """A row's last turn alone is longer than it may be."""


Measure = Callable[[Sequence[Conversation]], "list[Measured]"]
"""Renders conversations as they are, however long."""


class Shortener:
    """Drops whole oldest turns from what is longer than a limit; then, where it may, it cuts text.

    Args:
        max_length: most ids of a prompt or a dialogue.
        cut: what is still too long loses text (see `rlhf.conversation.Renderer`); False: that is an InputError.
        pieces: of the tokenizer.
        measure: how the dialogues are rendered.
    """

    def __init__(self, max_length: int, cut: bool, pieces: Pieces, measure: Measure) -> None:
        self.max_length = max_length
        self.cut = cut
        self._pieces = pieces
        self._measure = measure

    def without_hopeless_turns(self, conversation: Conversation) -> Conversation:
        """Without the oldest turns that even the vocabulary's longest tokens could not hold: they are never encoded.

        The conversation itself where it keeps all of them.
        """
        sizes = [len(message["content"]) for message in conversation]
        if sum(sizes) <= self.max_length:
            return conversation
        most = self._pieces.most_characters(self.max_length)
        system, _ = _parts(conversation)
        kept = sum(sizes)
        first = len(system)
        while kept > most and len(conversation) - first > 2:
            kept -= sizes[first] + sizes[first + 1]
            first += 2
        turn = conversation[first:]
        if kept > most:
            if not self.cut:
                raise self._too_long(turn, f"more than {self.max_length}")
            system, turn = (
                [Message(role=m["role"], content=m["content"].strip()[-most:]) for m in part] for part in (system, turn)
            )
        elif first == len(system):
            return conversation  # itself: nothing of it was left out
        return [*system, *turn]

    def shortened(self, conversation: Conversation, whole: Measured) -> Measured:
        """Without as few of its oldest pairs of messages as will do; InputError where the last turn alone is too long.

        The lengths in the whole dialogue say how many to drop; rendering what is left corrects it.
        """
        system, turns = _parts(conversation)
        most = (len(turns) - 1) // 2
        excess, dropped = len(whole.input_ids) - self.max_length, 0
        while excess > 0 and dropped < most:
            excess -= sum(whole.lengths[2 * dropped : 2 * dropped + 2])
            dropped += 1
        rendered = self._measure([[*system, *turns[2 * dropped :]]])[0]
        while len(rendered.input_ids) > self.max_length:
            if dropped == most:
                return self._cut_turn([*system, *turns[2 * most :]], rendered)
            dropped += 1
            rendered = self._measure([[*system, *turns[2 * dropped :]]])[0]
        while dropped > 1:
            longer = self._measure([[*system, *turns[2 * dropped - 2 :]]])[0]
            if len(longer.input_ids) > self.max_length:
                break
            rendered, dropped = longer, dropped - 1
        return rendered

    def _cut_turn(self, turn: Conversation, rendered: Measured) -> Measured:
        """A last turn with less text; InputError where nothing is to be cut, or nothing is left to."""
        while (excess := len(rendered.input_ids) - self.max_length) > 0:
            shorter = self._without_beginning(turn, excess) if self.cut else None
            if shorter is None:
                raise self._too_long(turn, str(len(rendered.input_ids)))
            turn = shorter
            rendered = self._measure([turn])[0]
        return rendered

    def _without_beginning(self, turn: Conversation, excess: int) -> Conversation | None:
        """With about `excess` tokens less, at least one character; None: there is no text left to cut."""
        texts = [m["content"].strip() for m in turn]
        ids = self._pieces.encode(texts)
        asked = [i for i, m in enumerate(turn) if m["role"] != "assistant" and len(texts[i]) > 1]
        said = [i for i, m in enumerate(turn) if m["role"] == "assistant" and len(texts[i]) > 1]
        if not (asked or said):
            return None
        place = max(asked or said, key=lambda i: len(ids[i]))
        keep = len(ids[place]) - excess
        end = self._pieces.decode(ids[place][-keep:], special=True) if keep > 0 else ""
        end = end.lstrip("\ufffd").strip()  # a character may have been parted
        if not 0 < len(end) < len(texts[place]):
            end = texts[place][-1:] if keep <= 0 else texts[place][1:].strip()
        return [{**m, "content": end} if i == place else m for i, m in enumerate(turn)]

    def _too_long(self, turn: Conversation, length: str) -> TooLongError:
        return TooLongError(
            f"messages: the last turn takes {length} tokens, above max_length={self.max_length}; "
            f"raise it, or set too_long to skip (it begins {quoted(turn[0]['content'])})"
        )


def _parts(conversation: Conversation) -> tuple[Conversation, Conversation]:
    """(system message or nothing, user's and assistant's messages)."""
    cut = 1 if conversation[0]["role"] == "system" else 0
    return conversation[:cut], conversation[cut:]
