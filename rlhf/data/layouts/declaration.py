"""What a layout is: how a row is recognised, which of its fields are read, and how it becomes a row of ours.

Every field of a row is accounted for: read by the layout, harmless there, common to all (`COMMON`), or one that every
layout knows (`system`, `history`). A field that would change what is learned and that nobody reads is refused by name
(`REFUSED`); any other is named once a file as not used.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.data.rows import Domain
from rlhf.errors import InputError, quoted

Row = Mapping[str, Any]
Kind = Literal["sft", "preferences", "prompts"]
KINDS: dict[Kind, str] = {"sft": "a conversation", "preferences": "a preference", "prompts": "a prompt"}


def named(names: str) -> frozenset[str]:
    """Field names, written with a space between them."""
    return frozenset(names.split())


COMMON = frozenset({"id", "source", "domain"})
HARMLESS = named(
    "prompt_id conversation_id conversation_hash uuid idx index hash url split subset dataset "
    "data_source category topic model models language lang timestamp tstamp turn turns num_turns "
    "views avatarUrl __index_level_0__"
) | {"", "Unnamed: 0"}  # and __index_level_0__: the index of a pandas table
SYSTEM = ("system", "system_prompt", "system_message")
REFUSED = {
    "tools": "tool calls are not supported; leave such rows out, or remove the field where no answer needs it",
    "functions": "tool calls are not supported; leave such rows out, or remove the field where no answer needs it",
    "tool_calls": "tool calls are not supported; leave such rows out",
    "function_call": "tool calls are not supported; leave such rows out",
    "function_calls": "tool calls are not supported; leave such rows out",
    "reasoning_content": "only content is rendered; write it as <think>…</think> before the answer, or remove it",
    "reasoning": "only content is rendered; write it as <think>…</think> before the answer, or remove it",
    "thinking": "only content is rendered; write it as <think>…</think> before the answer, or remove it",
    "thought": "only content is rendered; write it as <think>…</think> before the answer, or remove it",
    "images": "only text is read; leave such rows out",
    "image": "only text is read; leave such rows out",
    "image_url": "only text is read; leave such rows out",
    "videos": "only text is read; leave such rows out",
    "video": "only text is read; leave such rows out",
    "audios": "only text is read; leave such rows out",
    "audio": "only text is read; leave such rows out",
    "margin": "the loss takes its margin from strength (significantly, better, slightly, negligibly); give that",
    "weight": "rows have no weight; remove the field, or leave rows of weight 0 out (an answer's own weight is read)",
    "train": "a row is trained on or left out; remove the field, or leave rows with train: false out",
    "train_detail": "an answer is trained on whole or not at all; leave such rows out, or give train",
    "label": "nothing says what the label of such a row means; give true or false beside a prompt and its completion, "
    "or keep the rows that are good and remove the field",
    "labels": "nothing says what the labels of such a row mean; keep the rows that are good and remove the field",
    "kto_tag": "nothing says what the tag of such a row means; give true or false beside a prompt and its completion, "
    "or keep the rows that are good and remove the field",
    "history": "such a row has its earlier turns elsewhere; remove the field",
}
TRAIN = ("weight", "train", "loss", "training", "trainable", "loss_weight", "loss_scale", "loss_mask")
"""Names of the flag of a message by which its answer is trained on or not."""
_FLAGS = {*TRAIN, "mask", "masked"} - {"loss"}  # a row's loss is a figure
_MASKED = (
    "whether an answer is trained on is said by train (true, false) at its message; give that, or remove the field"
)
REFUSED = {**dict.fromkeys(_FLAGS, _MASKED), **REFUSED}
_OF_THOUGHTS = {"reasoning_content", "reasoning", "thinking", "thought"}
_OF_ANSWERS = _FLAGS | _OF_THOUGHTS | {"margin", "train_detail", "label", "labels", "kto_tag"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(TRAIN, (1,)),
    "masked": (False,),
    "reasoning": ("on", "off", True, False),  # whether there is any
    "thinking": (True, False),
    "thought": (False,),
}


@dataclass(frozen=True)
class Format:
    """One layout.

    Args:
        name: as people call it.
        needs: fields by which a row is recognised.
        reads: further fields that are read where a row has them.
        harmless: fields that say nothing about what is learned; `COMMON` ones may stand here, if they mean another
            thing than ours.
        dialogues: of those read, the ones that hold messages; they come to the converters as {role, content}.
        when: what else the row must be.
        conversation: a row -> messages that end with an answer.
        pairs: a row and the domain looked for -> plain preference rows: messages or prompt, chosen, rejected, …
        prompt: a row -> messages that end with the user's.
        together: equal keys make one item: the converters of the kinds in `joined` get a list of rows.
        joined: those kinds.
        anywhere: rows of one key belong together wherever they stand in the file, not only in succession.
        history: its `history` is earlier turns, pairs of a user's message and the answer.
    """

    name: str
    needs: frozenset[str]
    reads: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    dialogues: tuple[str, ...] = ()
    when: Callable[[Row], bool] | None = None
    conversation: Callable[[Any], Any] | None = None
    pairs: Callable[[Any, Domain | None], list[dict[str, Any]]] | None = None
    prompt: Callable[[Any], Any] | None = None
    together: Callable[[Row], Hashable] | None = None
    joined: frozenset[Kind] = frozenset()
    anywhere: bool = True
    history: bool = False

    def __post_init__(self) -> None:
        for name in ("needs", "reads", "harmless"):
            if not isinstance(names := getattr(self, name), (frozenset, set)):
                raise InputError(
                    f"{name}: must be a set of field names, e.g. named('ticket reply'), got {quoted(names)}"
                )

    def recognises(self, row: Row, names: frozenset[str]) -> bool:
        """Whether a row with these field names (all, or those with a value) is of this layout."""
        return self.needs <= names and (self.when is None or self.when(row))

    def serves(self, kind: Kind) -> bool:
        """Whether its rows can be read as this kind."""
        return {"sft": self.conversation, "preferences": self.pairs, "prompts": self.prompt}[kind] is not None

    def unused(self, row: Row, kind: Kind) -> list[str]:
        """Names of the row's fields that hold something and are not read; InputError for one that must not be lost."""
        found = []
        for name, value in row.items():
            if name in self.needs or name in self.reads or name in self.harmless or name in COMMON or name in HARMLESS:
                continue
            if is_empty(value) or name in SYSTEM or (self.history and name == "history"):
                continue
            if not (kind == "prompts" and name in _OF_ANSWERS):
                require_harmless(name, value)
            found.append(str(name))
        return found


def require_harmless(name: Any, value: Any, where: str = "") -> None:
    """InputError where a field, of a row or (`where` in words) of a part of it, would change what is learned."""
    if name in REFUSED and value not in _NEUTRAL.get(name, ()):
        raise InputError(f"{f'{where} has ' if where else ''}{name}: {REFUSED[name]}, got {quoted(value)}")


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, or an empty text, list or object, or JSON text of one."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def names_with_value(row: Row) -> frozenset[str]:
    """Names of the fields that are not null."""
    return frozenset(name for name, value in row.items() if value is not None)


def fields_of(row: Row) -> str:
    """The names of a row's fields, for a sentence: the first 30."""
    names = [str(name)[:60] for name in row if name not in COMMON]
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return (", ".join(names[:30]) or "none") + more


def asked_under(row: Row) -> list[Any]:
    """What a row says, beside its prompt, of how it is to be answered: rows that differ in it are not compared."""
    return [row[name] for name in (*SYSTEM, "history", "domain") if not is_empty(row.get(name))]


def user(content: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": content}


def before_answer(messages: Sequence[Any]) -> list[Any]:
    """The messages without the last one where that is an answer: what was asked."""
    last = messages[-1] if messages else None
    return list(messages[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else messages)
