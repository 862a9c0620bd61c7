"""Before a run: do its prompts, and the answers to them, fit into the contexts of the models that read them?

Renders prompts as each model will, with its own tokenizer and template; loads no weights, transformers when called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.conversation import Renderer
from rlhf.data.rows import Prompt
from rlhf.errors import InputError, notice
from rlhf.models.checkpoint.context import Context, TooLong

READERS = ("policy", "second_policy", "baseline", "value_from", "helpfulness", "safety", "referee")


def with_room(
    prompts: Sequence[Prompt], inputs: Mapping[str, Path], max_new_tokens: int, too_long: TooLong
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts to answer, and how many leave too little room for an answer of `max_new_tokens`, by role.

    All of them, but where `too_long` is "skip" those that leave room in every model's context. stderr says so.

    Args:
        inputs: of the stage, option -> path; the folders of READERS (and of an ensemble's members, helpfulness.0) are
            looked at, but one without a config (a policy that a server answers for).
        too_long: what will become of them.

    Raises:
        InputError: there are some, and `too_long` is "refuse"; or "skip", and no prompt is left.
    """
    from rlhf.models.policy import load_tokenizer

    found: dict[str, int] = {}
    left_out: set[int] = set()
    for role, folder in inputs.items():
        context = _context(folder) if role.partition(".")[0] in READERS and folder.is_dir() else None
        if context is None or context.length is None:
            continue
        lengths = [len(ids) for ids in Renderer(load_tokenizer(folder)).prompts([p.messages for p in prompts])]
        over = [i for i, length in enumerate(lengths) if not context.holds(length + max_new_tokens)]
        if not over:
            continue
        found[role] = len(over)
        left_out |= set(over)
        longest = max(over, key=lambda i: lengths[i])
        says = (
            f"{role}: {len(over)} of {len(prompts)} prompts leave no room for {max_new_tokens} new tokens in its "
            f"context of {context.length} (prompt {prompts[longest].id!r} has {lengths[longest]} tokens)"
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


def _context(folder: Path) -> Context | None:
    try:
        return Context.of_checkpoint(folder)
    except InputError:
        return None
