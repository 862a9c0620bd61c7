"""One row of anybody's layout into ours: the registry of layouts, and what every layout has in common.

    FORMATS                           in the order in which a row is tried; `register` puts your own before them
    conversation_of, pairs_of, preference_of, prompt_of     pure functions of one row; InputError names field and value

A layout is a declaration (`rlhf.data.layouts.declaration.Format`): those of dialogues stand in
`rlhf.data.layouts.conversations`, those of preferences in `rlhf.data.layouts.preferences`, the open preference sets in
`rlhf.data.open_preferences`. A row's layout is recognised by its fields: three or more that a layout needs, be they
null or not, else by those that are not null.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from rlhf.conversation import Conversation, check_characters, check_conversation
from rlhf.data.layouts.conversations import PROMPT_FORMATS, SFT_FORMATS, field_names, question_of
from rlhf.data.layouts.declaration import (
    KINDS,
    SYSTEM,
    Format,
    Kind,
    Row,
    fields_of,
    is_empty,
    names_with_value,
)
from rlhf.data.layouts.dialogue_text import is_hh
from rlhf.data.layouts.dialogue_text import parse_hh as parse_hh
from rlhf.data.layouts.messages import messages_of, with_history, with_system
from rlhf.data.layouts.preferences import GENERAL_PREFERENCE, PREFERENCE_FORMATS
from rlhf.data.open_preferences import OPEN_FORMATS
from rlhf.data.rows import Domain, Preference, Prompt
from rlhf.errors import InputError, quoted
from rlhf.imports import ANYTHING

FORMATS: list[Format] = [
    *OPEN_FORMATS,
    *PREFERENCE_FORMATS,
    *GENERAL_PREFERENCE,
    *SFT_FORMATS,
    *PROMPT_FORMATS,
]
_NEEDS: dict[Kind, str] = {
    "sft": "messages, or prompt and completion",
    "preferences": "messages, chosen and rejected, or prompt, chosen and rejected, or two whole dialogues as chosen "
    "and rejected",
    "prompts": "messages, prompt or text",
}
_USES: dict[Kind, str] = {"sft": "SFT rows", "preferences": "preferences", "prompts": "prompts"}
Item = tuple[int, list[dict[str, Any]]]


def register(layout: Format) -> Format:
    """Try this layout before all others; returns it. Registered again, nothing changes."""
    if layout not in FORMATS:
        FORMATS.insert(0, layout)
        _candidates.cache_clear()
    return layout


@lru_cache(maxsize=1024)
def _candidates(names: frozenset[str]) -> tuple[Format, ...]:
    return tuple(one for one in FORMATS if one.needs <= names)


def format_of(row: Row) -> Format | None:
    """The layout of a row; None where no field tells it."""
    everything = frozenset(row)
    for names, fewest in ((everything, 3), (names_with_value(row), 0), (everything, 0)):
        for one in _candidates(names):
            if len(one.needs) >= fewest and _fits(one, row):
                return one
    return None


def of_layout(
    rows: Iterable[tuple[int, dict[str, Any]]], layout: Format, source: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a source that its name gives this layout; InputError at their end where none has it."""
    first: dict[str, Any] = {}
    fits = False
    for number, row in rows:
        first = first or row
        fits = fits or _has(layout, row)
        yield number, row
    if not fits:
        needs = ", ".join(sorted(layout.needs)) or "nothing"
        more = "" if layout.when is None else " and what its `when` asks"
        raise InputError(
            f"{source}: no row has the layout {layout.name!r}, which needs {needs}{more}; the first row's fields are "
            f"{fields_of(first)}"
        )


def _has(layout: Format, row: Row) -> bool:
    """Whether a row has the layout; True also where one cannot say, which converting the row says."""
    try:
        return format_of(row) is layout
    except (InputError, RecursionError):
        return True


def _fits(one: Format, row: Row) -> bool:
    try:
        return one.when is None or one.when(row)
    except (InputError, RecursionError):
        raise
    except ANYTHING as error:  # a layout may be the user's own
        raise InputError(
            f"row: the layout {one.name} cannot say whether this is one of its rows, got {error!r}"
        ) from error


def gathered(rows: Iterable[tuple[int, Row]], kind: Kind | None) -> Iterator[Item]:
    """(number, rows that make one item) as they come: one row each, but where its layout says which belong together.

    Rows that belong together stand under the number of the first; where they may stand anywhere in the file, the items
    come at the end, in the order of their first rows.
    """
    anywhere: dict[Any, Item] = {}
    waiting: tuple[Any, Item] | None = None
    for number, row in rows:
        one = None if kind is None else _format_if_known(row)
        key = None if one is None or kind is None else _key(one, row, kind)
        if key is not None and one is not None and one.anywhere:
            anywhere.setdefault(key, (number, []))[1].append(dict(row))
            continue
        if waiting is not None and (key is None or key != waiting[0]):
            yield waiting[1]
            waiting = None
        if key is None:
            yield number, [dict(row)]
        elif waiting is not None:
            waiting[1][1].append(dict(row))
        else:
            waiting = key, (number, [dict(row)])
    if waiting is not None:
        yield waiting[1]
    yield from anywhere.values()


def _format_if_known(row: Row) -> Format | None:
    """The layout; None also where one fails at the row, which converting it says."""
    try:
        return format_of(row)
    except InputError:
        return None


def _key(one: Format, row: Row, kind: Kind) -> Any:
    if one.together is None or kind not in one.joined:
        return None
    try:
        return one.needs, one.together(_normal(one, row, Counter(), kind))
    except (InputError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None  # converting the row says what is wrong


def conversation_of(rows: Row | Sequence[Row], unused: Counter[str] | None = None) -> Conversation:
    """A dialogue that ends with the assistant's answer.

    Args:
        rows: a row, or those that `gathered` put together.
        unused: names of fields that hold something and are not read are added.
    """
    unused = Counter() if unused is None else unused
    one, given = _recognised(rows, "sft", unused)
    messages = _messages(one, given[0], _convert(one, one.conversation, given))
    checked = check_conversation(messages, last="assistant")
    if not any(message.get("train", True) for message in checked if message["role"] == "assistant"):
        raise InputError("messages: no answer is to be trained on (weight 0, train: false); leave the row out")
    return checked


def pairs_of(
    rows: Row | Sequence[Row], domain: Domain | None = None, unused: Counter[str] | None = None
) -> list[dict[str, Any]]:
    """The plain preference rows (messages, chosen, rejected, … for `Preference.from_dict`) of one item.

    Args:
        rows: a row, or those that `gathered` put together.
        domain: what is looked for: PKU-SafeRLHF holds two comparisons, "safety" takes the safer response.
        unused: names of fields that hold something and are not read are added.
    """
    unused = Counter() if unused is None else unused
    one, given = _recognised(rows, "preferences", unused)
    first = given[0]
    own = _own(one, first)
    history, system = _context(one, first)
    pairs = _convert(one, one.pairs, given, domain)
    _require_pairs(one, pairs)
    for pair in pairs:
        if _is_stray(pair.get("prompt"), pair.get("chosen")):
            del pair["prompt"]
            unused["prompt (it does not stand in the dialogues)"] += 1
    return [{**own, **pair, "history": history, "system": system} for pair in pairs]


def preference_of(row: Row) -> Preference:
    """A preference row of any known layout with one pair; `id` must be there."""
    (pair,) = pairs_of(row)
    return preference_from(pair)


def preference_from(pair: Mapping[str, Any]) -> Preference:
    """The Preference of one of `pairs_of`'s plain rows, whose `id` is set."""
    chosen, rejected = pair.get("chosen"), pair.get("rejected")
    prompt: Any = pair.get("messages")
    if prompt is None and pair.get("prompt") is not None:
        prompt = question_of(pair["prompt"])
    if is_hh(chosen) and is_hh(rejected):
        chosen, rejected = parse_hh(cast(str, chosen)), parse_hh(cast(str, rejected))
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _parted(prompt, chosen, rejected)
    elif prompt is None:
        raise InputError(
            f"row: not a preference; needs {_NEEDS['preferences']}; nothing says what its chosen and rejected answer"
        )
    messages = with_system(pair.get("system"), with_history(pair.get("history"), prompt))
    messages = [_untagged(message) for message in messages] if isinstance(messages, list) else messages
    return Preference.from_dict({**pair, "messages": messages, "chosen": chosen, "rejected": rejected})


def prompt_of(rows: Row | Sequence[Row], unused: Counter[str] | None = None, source: str = "") -> Prompt:
    """A prompt row of any known layout; `id` must be there. Of a dialogue the last answer is left off.

    Args:
        rows: a row, or those that `gathered` put together.
        unused: names of fields that hold something and are not read are added.
        source: of rows that name none.
    """
    unused = Counter() if unused is None else unused
    one, given = _recognised(rows, "prompts", unused)
    messages = _messages(one, given[0], _convert(one, one.prompt, given))
    if isinstance(messages, list):
        messages = [_untagged(message) for message in messages]
    return Prompt.from_dict({"source": source, **_own(one, given[0]), "messages": messages})


def text_of(row: Row) -> str:
    """The row's `text`."""
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"text: must be a non-empty text, got {quoted(text)}; the row's fields are {fields_of(row)}")
    check_characters("text", text)
    return text


def _recognised(rows: Row | Sequence[Row], kind: Kind, unused: Counter[str]) -> tuple[Format, list[dict[str, Any]]]:
    """The layout of an item, and its rows with messages as {role, content}; InputError where it is not of this kind."""
    given = [rows] if isinstance(rows, Mapping) else list(rows)
    one = format_of(given[0])
    if one is None or not one.serves(kind):
        raise InputError(_no_layout(given[0], one, kind))
    for row in given:
        unused.update(one.unused(row, kind))
    normal = [_normal(one, row, unused, kind) for row in given]
    return one, normal


def _normal(one: Format, row: Row, unused: Counter[str], kind: Kind) -> dict[str, Any]:
    beside = ("messages", "prompt") if kind == "preferences" and "chosen" in row else ()
    asked = one.dialogues if kind == "prompts" else beside
    given = [name for name in one.dialogues if name in row]
    return {**row, **{name: messages_of(row[name], unused, name, dropped=name in asked) for name in given}}


def _convert(one: Format, convert: Any, given: list[dict[str, Any]], *more: Any) -> Any:
    joined = one.together is not None and convert is not None and _takes_rows(one, convert)
    try:
        return convert(given if joined else given[0], *more)
    except (InputError, RecursionError):
        raise
    except ANYTHING as error:  # a converter may be the user's own
        raise InputError(f"row: has the fields of {one.name}, but not its inner structure, got {error!r}") from error


def _takes_rows(one: Format, convert: Any) -> bool:
    kinds: dict[Kind, Any] = {"sft": one.conversation, "preferences": one.pairs, "prompts": one.prompt}
    return any(convert is kinds[kind] for kind in one.joined)


def _own(one: Format, row: Row) -> dict[str, Any]:
    """The row's id, source and domain, where these are what we mean by them."""
    own = {name: row[name] for name in ("id", "source", "domain") if name in row and name not in one.harmless}
    if not isinstance(own.get("source", ""), str) or not own.get("source", " "):
        del own["source"]
    return own


def _context(one: Format, row: Row) -> tuple[Any, Any]:
    """(earlier turns, system message) that stand in columns of their own."""
    systems = {name: row[name] for name in SYSTEM if name not in one.needs and not is_empty(row.get(name))}
    for name, system in systems.items():
        if not isinstance(system, str):
            raise InputError(f"{name}: must be a text, got {quoted(system)}")
    if len(set(systems.values())) > 1:
        raise InputError(f"{', '.join(systems)}: the two system messages differ; keep one")
    return row.get("history") if one.history else None, next(iter(systems.values()), None)


def _messages(one: Format, row: Row, messages: Any) -> Any:
    """The messages, with the row's history and its system column before them."""
    history, system = _context(one, row)
    return with_system(system, with_history(history, messages))


def _require_pairs(one: Format, pairs: Any) -> None:
    """InputError where a layout makes something else than pairs, or there are no messages where there are lists."""
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise InputError(f"row: the layout {one.name} must make a list of pairs of it, got {quoted(pairs)}")
    for pair in pairs:
        for name in ("messages", "prompt", "chosen", "rejected"):
            said = pair.get(name)
            for number, message in enumerate(said if isinstance(said, (list, tuple)) else [], start=1):
                if not isinstance(message, dict):
                    raise InputError(f"{name}: message {number} must be {{role, content}}, got {quoted(message)}")


def _is_stray(prompt: Any, chosen: Any) -> bool:
    """Whether a prompt's text does not stand in the whole dialogue that has the answer."""
    if not isinstance(prompt, str) or is_hh(prompt) or not isinstance(chosen, list) or len(chosen) < 2:
        return False
    said = [_squeezed(message.get("content")) for message in chosen[:-1] if isinstance(message, dict)]
    return chosen[0].get("role") != "assistant" and _squeezed(prompt) not in said


def _untagged(message: Any) -> Any:
    """Without the marks that an answer is not trained on, or not to its end: it is context here."""
    if isinstance(message, dict):
        return {name: value for name, value in message.items() if name not in ("train", "finished")}
    return message


def _no_layout(row: Row, one: Format | None, kind: Kind) -> str:
    """Why a row cannot be read as this kind: what it is, and the nearest right thing."""
    sentence = f"row: not {KINDS[kind]}; needs {_NEEDS[kind]}; its fields are {fields_of(row)}"
    if one is not None:
        uses = " or ".join(_USES[other] for other in KINDS if one.serves(other))
        return f"{sentence}; it has the layout {one.name!r}, which holds {uses}"
    known = field_names(layout for layout in FORMATS if layout.serves(kind))
    for name in list(row)[:30]:  # those that the sentence shows
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.75)
        if near and near[0] not in row:
            return f"{sentence}; did you mean {near[0]} by {name}?"
    return sentence


def _parted(prompt: Any, chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], Any, Any]:
    """(messages before the answers, chosen answer, rejected answer) of two lists of messages."""
    messages = []
    for name, answers in (("chosen", chosen), ("rejected", rejected)):
        last = answers[-1] if answers else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise InputError(f"{name}: must be messages that end with the assistant's answer, got {quoted(answers)}")
        if last.get("train") is False:
            raise InputError(f"{name}: its answer is not to be trained on (weight 0, train: false); leave the row out")
        messages.append(_before(prompt, answers[:-1], name))
    if messages[0] != messages[1]:
        turn = next((i for i, (a, b) in enumerate(zip(*messages, strict=False), start=1) if a != b), None)
        where = f"at message {turn}" if turn else "in their number of messages"
        raise InputError(f"chosen, rejected: the two dialogues part before the last answer, {where}")
    return cast("list[Any]", messages[0]), chosen[-1].get("content"), rejected[-1].get("content")


def _before(prompt: Any, before: list[Any], name: str) -> Any:
    """What stands before an answer, of the prompt and the messages of `chosen` or `rejected` but the last.

    A whole dialogue repeats its prompt; what goes on after the prompt is added to it.
    """
    if not isinstance(prompt, list) or not prompt:
        return before
    if not before:
        return prompt
    if before[0].get("role") == "assistant":
        return [*prompt, *before]
    system, turns = _system_and_turns(prompt)
    own_system, own_turns = _system_and_turns(before)
    if system and own_system and system != own_system:
        raise InputError(f"{name}: its system message differs from the prompt's, got {quoted(own_system[0])}")
    said = {_squeezed(message.get("content")) for message in own_turns}
    if not all(_squeezed(message.get("content")) in said for message in turns):
        raise InputError(f"{name}: the prompt does not stand in it, got {quoted(turns[-1].get('content'))}")
    return [*(own_system or system), *own_turns]


def _system_and_turns(messages: list[Any]) -> tuple[list[Any], list[Any]]:
    own = [message for message in messages if isinstance(message, dict)]
    cut = 1 if own and own[0].get("role") == "system" else 0
    return own[:cut], own[cut:]


def _squeezed(text: Any) -> str:
    return " ".join(str(text).split())
