"""Before a run: do its prompts, and the answers to them, fit into the contexts of the models that read them?

Renders prompts as each model will, with its own tokenizer and template; loads no weights, transformers when called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from rlhf.conversation import Conversation, Renderer, without_thoughts
from rlhf.data.rows import Prompt
from rlhf.errors import InputError, notice, quoted
from rlhf.models.checkpoint.context import Context, TooLong, TooLongRow
from rlhf.stage import Stage

READERS = (
    "policy", "policies", "models", "second_policy", "opponent", "baseline", "value_from",
    "helpfulness", "safety", "referee",
)  # fmt: skip

SCORERS = ("rewards", "helpfulness", "safety")

Asked = TypeVar("Asked")
"""A prompt, in whatever a recipe holds it."""


def answerable(
    stage: Stage,
    prompts: Sequence[Asked],
    max_new_tokens: int,
    *,
    messages: Callable[[Asked], Conversation] = attrgetter("messages"),
    inputs: Mapping[str, Path] | None = None,
    chat_template: str | None = None,
) -> list[Asked]:
    """`with_room` of a stage's prompts by its own option `too_long`; its closing block counts them.

    Args:
        inputs: those that read these prompts; None: the stage's.
        messages, chat_template: as for `with_room`.
    """
    read = stage.inputs if inputs is None else inputs
    fitting, over = with_room(
        prompts, read, max_new_tokens, stage.config.too_long, messages=messages, chat_template=chat_template
    )
    if over:
        known = stage.closing.numbers.get("prompts_without_room") or 0
        stage.closing.figures(prompts_without_room=int(known) + max(over.values()))
    stage.closing.rows(len(fitting), {"too long a prompt": len(prompts) - len(fitting)})
    return fitting


def with_room(
    prompts: Sequence[Asked],
    inputs: Mapping[str, Path],
    max_new_tokens: int,
    too_long: TooLong,
    *,
    messages: Callable[[Asked], Conversation] = attrgetter("messages"),
    chat_template: str | None = None,
) -> tuple[list[Asked], dict[str, int]]:
    """The prompts to answer, and how many leave too little room for an answer of `max_new_tokens`, by role.

    All of them, but where `too_long` is "skip" those that leave room in every model's context. stderr says so.

    Args:
        inputs: of the stage, option -> path; the folders of READERS (and of an ensemble's members, helpfulness.0) are
            looked at, but one without a config (a policy that a server answers for).
        too_long: what will become of them.
        messages: a prompt's conversation.
        chat_template: in place of the models' own.

    Raises:
        InputError: there are some, and `too_long` is "refuse"; or "skip", and no prompt is left.
    """
    found: dict[str, int] = {}
    left_out: set[int] = set()
    for role, folder in inputs.items():
        reader = _reader(folder, chat_template) if role.partition(".")[0] in READERS else None
        if reader is None:
            continue
        context, renderer = reader
        asked = [messages(prompt) for prompt in prompts]
        read = [renderer.clipped(conversation, context.length) for conversation in asked]
        lengths = [len(ids) for ids in renderer.prompts(read)]
        over = [i for i, length in enumerate(lengths) if not context.holds(length + max_new_tokens)]
        if not over:
            continue
        found[role] = len(over)
        left_out |= set(over)
        longest = max(over, key=lambda i: lengths[i])
        says = (
            f"{role}: {len(over)} of {len(prompts)} prompts leave no room for {max_new_tokens} new tokens in its "
            f"context of {context.length} (prompt {_name(prompts[longest], messages)} has "
            f"{_tokens(lengths[longest], whole=read[longest] is asked[longest])})"
        )
        if too_long == "refuse":
            raise InputError(f"{says}; leave them out, lower sampling.max_new_tokens, or set too_long to cut")
        notice(f"{says}; they go by too_long: {too_long}")
    if too_long != "skip":
        return list(prompts), found
    if prompts and len(left_out) == len(prompts):
        raise InputError(
            f"too_long: no prompt leaves room for {max_new_tokens} new tokens; lower that, or set it to cut"
        )
    return [prompt for number, prompt in enumerate(prompts) if number not in left_out], found


def readable(stage: Stage, rows: Sequence[Asked], dialogues: Callable[[Asked], Sequence[Conversation]]) -> list[Asked]:
    """The rows to score, by the stage's own option `too_long`: without those that a reward model's context does not
    hold where it is "skip". Its closing block counts them.

    Args:
        dialogues: of a row, each with its answer.

    Raises:
        InputError: there are some, and `too_long` is "refuse"; or "skip", and no row is left.
    """
    too_long: TooLongRow = stage.config.too_long
    left_out: set[int] = set()
    for role, folder in stage.inputs.items():
        reader = _reader(folder) if role.partition(".")[0] in SCORERS else None
        if reader is None:
            continue
        context, renderer = reader
        over = [
            number
            for number, row in enumerate(rows)
            if not all(
                context.holds(len(d.input_ids))
                for d in renderer.dialogues(
                    [renderer.clipped(without_thoughts(c), context.length) for c in dialogues(row)], train="last"
                )
            )
        ]
        says = f"{role}: {len(over)} of {len(rows)} rows are longer than its context of {context.length}"
        if over and too_long == "refuse":
            raise InputError(f"{says}; leave them out, or set too_long to cut or skip")
        if over:
            notice(f"{says}; they go by too_long: {too_long}")
        left_out |= set(over)
    if left_out:
        stage.closing.figures(rows_too_long=len(left_out))
    kept = [row for number, row in enumerate(rows) if too_long != "skip" or number not in left_out]
    if rows and not kept:
        raise InputError("too_long: no row is short enough for all reward models; set it to cut")
    stage.closing.rows(len(kept), {"too long": len(rows) - len(kept)})
    return kept


def prompts_within(
    context: Context,
    renderer: Renderer,
    prompts: Sequence[Conversation],
    max_new_tokens: int,
    too_long: TooLong | None,
) -> list[list[int]]:
    """The prompts' ids, those that leave too little room dealt with as `too_long` says.

    Args:
        too_long: None: they are cut, and stderr says how many, as nobody has looked before.

    Raises:
        InputError: there are some, and `too_long` is "refuse".
    """
    read = [renderer.clipped(prompt, context.length) for prompt in prompts]
    rendered = renderer.prompts(read)
    room = context.room_before(max_new_tokens, too_long or "cut")
    if room is not None:
        long = [i for i, ids in enumerate(rendered) if len(ids) > room]
        if long and too_long is None:
            print(
                f"sampling: {len(long)} of {len(prompts)} prompts leave no room for {max_new_tokens} new tokens in "
                f"the model's context of {context.length}, and are cut to {room} (oldest turns first)",
                file=sys.stderr,
            )
        for i, ids in zip(long, renderer.limited(room).prompts([prompts[i] for i in long]), strict=True):
            rendered[i] = ids
    elif too_long == "refuse":
        for prompt, clipped, ids in zip(prompts, read, rendered, strict=True):
            if not context.holds(len(ids) + max_new_tokens):
                raise InputError(
                    f"prompt: {prompt[-1]['content'][:60]!r} has {_tokens(len(ids), whole=clipped is prompt)} "
                    f"with its history, which leaves no room for {max_new_tokens} more in the model's context of "
                    f"{context.length}; leave it out, "
                    "or set too_long to cut"
                )
    return rendered


def prompts_of_at_most(
    field: str, source: str, prompts: Sequence[Prompt], renderer: Renderer, max_prompt_tokens: int | None
) -> list[Prompt]:
    """The prompts of at most this many tokens; how many are left out is said on stderr. None: all.

    Args:
        field, source: name of the option and its value, for messages.

    Raises:
        InputError: none is left.
    """
    if max_prompt_tokens is None:
        return list(prompts)
    unlimited = [len(ids) for ids in Renderer(renderer.tokenizer).prompts([p.messages for p in prompts])]
    kept = [p for p, length in zip(prompts, unlimited, strict=True) if length <= max_prompt_tokens]
    if len(kept) < len(prompts):
        notice(f"{source}: {len(prompts) - len(kept)} of {len(prompts)} prompts are too long")
    if not kept:
        raise InputError(f"{field}: {source} has no prompts of at most {max_prompt_tokens} tokens; raise that limit")
    return kept


class Room:
    """Which prompts of dialogues that a policy holds, turn after turn, leave room for its answer.

    Args:
        context, renderer: the policy's.
        too_long: refuse raises InputError of one that does not; else the dialogue ends before it.
    """

    def __init__(self, context: Context, renderer: Renderer, max_new_tokens: int, too_long: TooLong) -> None:
        self._context, self._renderer, self._new, self._too_long = context, renderer, max_new_tokens, too_long

    def __call__(self, prompts: Sequence[Conversation]) -> list[bool]:
        """Of each prompt."""
        read = [self._renderer.clipped(prompt, self._context.length) for prompt in prompts]
        fits = [self._context.holds(len(ids) + self._new) for ids in self._renderer.prompts(read)]
        if self._too_long == "refuse" and not all(fits):
            raise InputError(
                f"dialogues: {fits.count(False)} of {len(prompts)} leave no room for {self._new} new tokens in the "
                f"policy's context of {self._context.length} (one begins "
                f"{quoted(prompts[fits.index(False)][0]['content'])}); name shorter ones, lower "
                "sampling.max_new_tokens, or set too_long to cut"
            )
        return fits


def _tokens(count: int, *, whole: bool) -> str:
    """So many tokens, of a text whose end alone may have been read (`Renderer.clipped`)."""
    return f"{'' if whole else 'at least '}{count} tokens"


def _name(prompt: Asked, messages: Callable[[Asked], Conversation]) -> str:
    """Its id, or how its question begins."""
    own = getattr(prompt, "id", None)
    return quoted(messages(prompt)[-1]["content"] if own is None else own)


def _reader(folder: Path, chat_template: str | None = None) -> tuple[Context, Renderer] | None:
    """The context of a model and what renders for it; None: it has no limit that is known here, or reads no dialogues
    by a chat template (`rlhf.rewards.foreign`)."""
    from rlhf.models.policy import load_tokenizer

    if not folder.is_dir():
        return None
    try:
        context = Context.of_checkpoint(folder)
    except InputError:
        return None
    tokenizer = load_tokenizer(folder) if context.length is not None else None
    if tokenizer is None or not (chat_template or tokenizer.chat_template):
        return None
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return context, Renderer(tokenizer)
