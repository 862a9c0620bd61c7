"""The row types, checked at the door. Light: no torch, no datasets.

Each `from_dict` raises InputError, one sentence naming the field and the value; loaders add the file and the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rlhf.conversation import Conversation, Message, check_characters, check_conversation, with_thoughts
from rlhf.errors import InputError, quoted

Domain = Literal["helpfulness", "safety"]
_OF_ALL = "; #helpfulness or #safety behind the file's name says it of all its rows"
Strength = Literal["significantly", "better", "slightly", "negligibly"]
STRENGTHS: tuple[str, ...] = get_args(Strength)


def _one_of(field: str, value: Any, allowed: tuple[str, ...], way_out: str = "") -> Any:
    if value not in allowed:
        raise InputError(f"{field}: must be one of {', '.join(allowed)}, got {quoted(value)}{way_out}")
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{field}: must be a non-empty text, got {quoted(value)}")
    check_characters(field, value)
    return value


def _source(row: Mapping[str, Any]) -> str:
    source = str(row.get("source", ""))
    check_characters("source", source)
    return source


@dataclass(frozen=True)
class Prompt:
    """A question to answer: `messages` ends with the user's turn; `domain` tags it for the safety gate."""

    id: str
    messages: Conversation
    domain: Domain = "helpfulness"
    source: str = ""

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Prompt:
        messages = check_conversation(row.get("messages"), last="user")
        domain = _one_of("domain", row.get("domain", "helpfulness"), get_args(Domain), _OF_ALL)
        return cls(_text("id", row.get("id")), messages, domain, _source(row))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def answered(self, text: str, finished: bool = True, thoughts: str = "") -> Conversation:
        """The whole dialogue with this answer as its last message, marked where it is not finished.

        Args:
            thoughts: put before the text, for a dialogue to learn from; judges get the text alone.
        """
        answer: Message = {"role": "assistant", "content": with_thoughts(thoughts, text)}
        if not finished:
            answer["finished"] = False
        return [*self.messages, answer]


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, and which a person chose.

    `strength` says how much better the chosen one is (None: unknown); `chosen_safe`, `rejected_safe` are safety labels
    (None: unlabelled). A row whose chosen answer is unsafe and whose rejected one is safe is refused (paper, section
    3.2.1).
    """

    id: str
    messages: Conversation
    chosen: str
    rejected: str
    strength: Strength | None = None
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    domain: Domain = "helpfulness"
    source: str = ""

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Preference:
        messages = check_conversation(row.get("messages"), last="user")
        chosen, rejected = _text("chosen", row.get("chosen")), _text("rejected", row.get("rejected"))
        if chosen.strip() == rejected.strip():
            raise InputError(f"chosen, rejected: the two answers are identical, {quoted(chosen)}")
        strength = row.get("strength")
        if strength is not None:
            _one_of("strength", strength, STRENGTHS)
        labels = {}
        for name in ("chosen_safe", "rejected_safe"):
            labels[name] = row.get(name)
            if not isinstance(labels[name], (bool, type(None))):
                raise InputError(f"{name}: must be true, false or null, got {quoted(labels[name])}")
        if labels["chosen_safe"] is False and labels["rejected_safe"] is True:
            raise InputError(
                "chosen_safe, rejected_safe: an unsafe answer chosen over a safe one is not trained on; drop the row"
            )
        domain = _one_of("domain", row.get("domain", "helpfulness"), get_args(Domain), _OF_ALL)
        return cls(
            _text("id", row.get("id")),
            messages,
            chosen,
            rejected,
            strength,
            **labels,
            domain=domain,
            source=_source(row),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def conversation(self, which: Literal["chosen", "rejected"]) -> Conversation:
        """The whole dialogue with that answer as its last message."""
        return [*self.messages, {"role": "assistant", "content": getattr(self, which)}]


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled and scored answer, one row of the pool.

    Scores are raw (before the sigmoid); safety is None where no safety model judged; reward is the gate's choice.
    `thoughts` came before the text, and no judge saw them.
    """

    prompt_id: str
    version: str
    index: int
    text: str
    token_ids: Sequence[int]
    logprob: float
    temperature: float
    finished: bool
    helpfulness: float
    safety: float | None
    reward: float
    reward_model: str
    thoughts: str = ""
