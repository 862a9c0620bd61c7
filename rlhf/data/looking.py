"""A file of rows as they will be read and rendered, for a person's eye: `rlhf look FILE`.

What is trained on is coloured (or, without colours, stands between ⟦ and ⟧); with it the counts, the lengths, what is
left out and why.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rlhf.conversation import Conversation
from rlhf.data.formats import format_of
from rlhf.data.layouts.declaration import Kind, fields_of
from rlhf.data.loading import (
    Reader,
    Source,
    conversation_reader,
    converted,
    preference_reader,
    prompt_reader,
    source_rows,
    untagged,
)
from rlhf.data.reading import Reading
from rlhf.data.rows import Preference, Prompt
from rlhf.errors import InputError
from rlhf.terminal import disarmed

if TYPE_CHECKING:
    from rlhf.conversation import Renderer

_END_SHOWN = 2000  # characters
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


@dataclass
class Look:
    """What a file holds.

    Args:
        kind: what its rows were read as.
        layouts: rows by the name of their layout.
        rows: how many rows of ours came of it.
        domains: these rows by domain; none for SFT rows.
        lengths: of each row's longest rendering: tokens with a renderer, else characters.
        trained: of these, how many belong to answers that are trained on or compared; none for prompts.
        shown: the first rows, rendered.
        reading: what was left out and not used.
    """

    kind: Kind
    layouts: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    domains: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    trained: int = 0
    shown: list[str] = field(default_factory=list)
    reading: Reading = field(default_factory=Reading)


def kind_of(source: Source) -> Kind:
    """What the rows of a source are most likely meant for: the first of preferences, SFT rows and prompts they can be.

    Told by the first row whose layout is known; InputError where no row's is.
    """
    first: dict[str, Any] | None = None
    for number, row in source_rows(source):
        first = first or row
        layout = format_of(row)
        if layout is not None:
            kinds: tuple[Kind, ...] = ("preferences", "sft", "prompts")
            return next(kind for kind in kinds if layout.serves(kind))
        if number >= 100:
            break
    raise InputError(f"{source}: no layout of its rows is known; its first row has the fields {fields_of(first or {})}")


def look_at(source: Source, kind: Kind | None = None, renderer: Renderer | None = None, show: int = 3) -> Look:
    """Read a source as the recipes do, but skip bad rows, and render its first `show` rows.

    Args:
        source: file, folder or hub name.
        kind: what to read its rows as; None: `kind_of`.
        renderer: with the model's tokenizer; None: roles and texts are shown, and lengths count characters.
    """
    kind = kind or kind_of(source)
    look = Look(kind)
    readers: dict[Kind, Reader[Any]] = {
        "sft": conversation_reader(),
        "preferences": preference_reader(source),
        "prompts": prompt_reader(source),
    }
    for _, row in source_rows(source):
        layout = format_of(row)
        look.layouts[layout.name if layout is not None else "unknown"] += 1
    for number, row in converted(source, readers[kind], "skip", look.reading):
        try:
            drawn = [_drawn(messages, kind, renderer) for messages in _dialogues(row)]
        except InputError as error:
            look.reading.leave_out(str(error))
            continue
        look.rows += 1
        if isinstance(row, (Preference, Prompt)):
            look.domains[row.domain] += 1
        look.lengths.append(max(length for _, length, _ in drawn))
        look.trained += sum(trained for _, _, trained in drawn)
        if len(look.shown) < show:
            look.shown.append("\n".join(_headed(number, row, [text for text, _, _ in drawn])))
    return look


def _dialogues(row: Any) -> Iterator[Conversation]:
    if isinstance(row, Preference):
        yield row.conversation("chosen")
        yield row.conversation("rejected")
    else:
        yield row.messages if isinstance(row, Prompt) else row


def _drawn(messages: Conversation, kind: Kind, renderer: Renderer | None) -> tuple[str, int, int]:
    """(text with marks, length, how much of it is trained on) of a dialogue."""
    if renderer is None:
        return _by_roles(messages, kind)
    if kind == "prompts":
        ids = renderer.prompt_ids(messages)
        return _escaped(_decoded(renderer, ids)), len(ids), 0
    rendered = renderer.dialogue(messages, "all" if kind == "sft" else "last")
    pairs = zip(rendered.input_ids, rendered.loss_mask, strict=True)
    runs = [(mask, [i for i, _ in run]) for mask, run in groupby(pairs, key=lambda pair: pair[1])]
    text = "".join(_marked(_decoded(renderer, ids), mask) for mask, ids in runs)
    return text, len(rendered.input_ids), sum(rendered.loss_mask)


def _by_roles(messages: Conversation, kind: Kind) -> tuple[str, int, int]:
    lines, trained = [], 0
    for number, message in enumerate(messages, start=1):
        last = number == len(messages)
        learnt = message["role"] == "assistant" and message.get("train", True) and (kind == "sft" or last)
        trained += len(message["content"]) if learnt else 0
        lines.append(f"{message['role']}: {_marked(message['content'], learnt)}")
    return "\n".join(lines), sum(len(message["content"]) for message in messages), trained


def _decoded(renderer: Renderer, ids: list[int]) -> str:
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _marked(text: str, trained: bool) -> str:
    return f"⟦{_escaped(text)}⟧" if trained else _escaped(text)


def _escaped(text: str) -> str:
    """What data wrote, with nothing in it that a terminal obeys, without our marks; of a long text both ends."""
    if len(text) > 2 * _END_SHOWN:
        cut = len(text) - 2 * _END_SHOWN
        text = f"{text[:_END_SHOWN]} … {cut:,} characters more … {text[-_END_SHOWN:]}"
    text = text.replace("⟦", "[").replace("⟧", "]")
    return disarmed(text)


def _headed(number: int, row: Any, texts: list[str]) -> Iterator[str]:
    if not isinstance(row, Preference):
        about = f", {row.domain}" if isinstance(row, Prompt) else ""
        yield f"--- row {number}{about}"
        yield texts[0]
        return
    labels = ", ".join(f"{name} {value}" for name, value in _labels(row) if value is not None)
    yield f"--- row {number}, {row.domain}{', ' + labels if labels else ''}: chosen"
    yield texts[0]
    yield f"--- row {number}: rejected"
    yield texts[1]


def _labels(row: Preference) -> Iterator[tuple[str, Any]]:
    yield "strength", row.strength
    yield "chosen safe:", row.chosen_safe
    yield "rejected safe:", row.rejected_safe


def look_text(look: Look, source: Source, *, tokens: bool, colours: bool) -> str:
    """The look as text for the terminal: rows, then counts and lengths, then what is left out.

    Args:
        look: of `look_at`.
        source: as it was named.
        tokens: lengths are tokens, not characters.
        colours: what is trained on is green, not in brackets.
    """
    lines = [*look.shown, ""]
    uses = {"sft": "SFT rows", "preferences": "preferences", "prompts": "prompts"}[look.kind]
    lines.append(f"{look.layouts.total():,} rows, read as {look.rows:,} {uses}")
    lines += [f"layout: {name} ({count:,})" for name, count in look.layouts.most_common()]
    if look.domains:
        lines.append("domain: " + ", ".join(f"{name} ({count:,})" for name, count in look.domains.most_common()))
    if look.lengths:
        unit = "tokens" if tokens else "characters (name a tokenizer for tokens)"
        longest, middle = max(look.lengths), int(statistics.median(look.lengths))
        lines.append(f"length: median {middle:,}, longest {longest:,} {unit}")
        if look.kind != "prompts":
            what = "trained on" if look.kind == "sft" else "compared"
            lines.append(f"{what}: {look.trained:,} of them in all, marked {'green' if colours else '⟦so⟧'} above")
    lines += look.reading.sentences(untagged(source), look.rows)
    text = "\n".join(lines).strip()
    return text.replace("⟦", _GREEN).replace("⟧", _PLAIN) if colours else text
