"""What an annotator is given and what it gives back. Light: no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, get_args

from rlhf.conversation import Conversation, check_conversation
from rlhf.data.rows import STRENGTHS, Domain, Preference, Strength
from rlhf.errors import InputError

Choice = Literal["a", "b"]
Outcome = Literal["a", "b", "tie"]


Part = Literal["train", "test"]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, before anybody chose.

    Args:
        messages: the dialogue up to the prompt; its last message is the user's.
        a, b: the two answers.
        domain: what the annotator is to look at first, helpfulness or safety.
        id: name of the pair in its batch; empty: `pair_id` of the content.
        models: who wrote a and b, e.g. checkpoint folders; kept, and never shown to an annotator.
        part: "train", or "test" for pairs that measure the reward models and that none is trained on.
    """

    messages: Conversation
    a: str
    b: str
    domain: Domain = "helpfulness"
    id: str = ""
    models: tuple[str, str] = ("", "")
    part: Part = "train"

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", pair_id(self.messages, self.a, self.b))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Pair:
        """Of a row with these fields.

        Raises:
            InputError: an unknown field, or one with another kind of value.
        """
        known = {field.name for field in fields(cls)}
        for name in row:
            if name not in known:
                raise InputError(f"{name}: is no field of a pair; it has {', '.join(sorted(known))}")
        for name in ("a", "b"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(f"{name}: must be an answer, a non-empty text, got {row.get(name)!r}")
        values: dict[str, Any] = {"a": row["a"], "b": row["b"]}
        for name, allowed in (("domain", get_args(Domain)), ("part", ("train", "test"))):
            if name in row and row[name] not in allowed:
                raise InputError(f"{name}: must be one of {', '.join(allowed)}, got {row[name]!r}")
        if "models" in row:
            models = row["models"]
            if not isinstance(models, list | tuple) or [type(model) for model in models] != [str, str]:
                raise InputError(f"models: must be two names, got {models!r}")
            values["models"] = (models[0], models[1])
        values.update({name: row[name] for name in ("domain", "part", "id") if name in row})
        if not isinstance(values.get("id", ""), str):
            raise InputError(f"id: must be a text, got {values['id']!r}")
        return cls(check_conversation(row.get("messages"), last="user"), **values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Judgement:
    """What one annotator says of one pair: a choice, or that there is none and why.

    Args:
        pair: id of the pair.
        annotator: who judged.
        choice: the better answer; "tie": about the same, where the scale has that (rlhf.annotation.scales); None:
            skipped.
        strength: how much better it is; None: not said, a tie, or skipped.
        chosen_safe, rejected_safe: is the answer safe? None: not said. Of the paper's bins an unsafe choice over a safe
            answer is left out, so it is refused here.
        left: which answer stood on the left (or first) as it was shown; None: none did, e.g. both orders were asked.
        seconds: from showing the pair to the judgement; None: not measured.
        skipped: why there is no choice, in a few words; empty where there is one.

    Raises:
        InputError: the fields contradict each other, or hold another kind of value.
    """

    pair: str
    annotator: str
    choice: Outcome | None
    strength: Strength | None = None
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    left: Choice | None = None
    seconds: float | None = None
    skipped: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("choice", get_args(Outcome)), ("left", get_args(Choice)), ("strength", STRENGTHS)):
            if getattr(self, name) not in (*allowed, None):
                raise InputError(f"{name}: must be one of {', '.join(allowed)} or null, got {getattr(self, name)!r}")
        for name in ("chosen_safe", "rejected_safe"):
            if not isinstance(getattr(self, name), bool | None):
                raise InputError(f"{name}: must be true, false or null, got {getattr(self, name)!r}")
        for name in ("pair", "annotator"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InputError(f"{name}: must be a name, got {getattr(self, name)!r}")
        if not isinstance(self.skipped, str) or bool(self.skipped.strip()) == (self.choice is not None):
            raise InputError("choice, skipped: choose a or b, or say in `skipped` why there is no choice")
        unsaid = (self.strength, self.chosen_safe, self.rejected_safe) == (None, None, None)
        if self.choice in (None, "tie") and not unsaid:
            raise InputError("skipped: a pair that is skipped, or a tie, has no strength and no safety labels")
        seconds = 0.0 if self.seconds is None else self.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise InputError(f"seconds: must be a number of 0 or above, or null, got {self.seconds!r}")
        if self.chosen_safe is False and self.rejected_safe is True:
            raise InputError(
                "chosen_safe, rejected_safe: an unsafe answer cannot be chosen over a safe one; choose the safe one, "
                "or skip the pair"
            )

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Judgement:
        """Of a row with these fields; InputError for an unknown or a missing one."""
        known = [field.name for field in fields(cls)]
        for name in row:
            if name not in known:
                raise InputError(f"{name}: is no field of a judgement; it has {', '.join(known)}")
        for name in ("pair", "annotator", "choice"):
            if name not in row:
                raise InputError(f"{name}: is missing; every judgement has it")
        return cls(**row)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Annotator(Protocol):
    """Judges pairs, one by one, in any order.

    `judge` yields a Judgement as soon as there is one: whoever asks keeps it before asking for the next, so that a kill
    costs at most the judgement in work. It reads ahead in `pairs` as far as it likes (a judge model asks several at
    once), and skips a pair it cannot judge, saying why, rather than passing over it in silence.
    """

    name: str

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]: ...


def pair_id(messages: Conversation, a: str, b: str) -> str:
    """16 hex digits of the content, a and b in their order."""
    return hashlib.sha256(json.dumps([messages, a, b], sort_keys=True).encode()).hexdigest()[:16]


def preference_of(pair: Pair, judgement: Judgement, id: str = "") -> Preference | None:
    """The row that reward models are trained on; None for a skip or a tie. Its source is the annotator."""
    if judgement.choice in (None, "tie"):
        return None
    chosen, rejected = (pair.a, pair.b) if judgement.choice == "a" else (pair.b, pair.a)
    return Preference(
        id or pair.id,
        pair.messages,
        chosen,
        rejected,
        judgement.strength,
        judgement.chosen_safe,
        judgement.rejected_safe,
        pair.domain,
        judgement.annotator,
    )
