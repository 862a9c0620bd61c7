"""What a chat checkpoint is, read before anything is planned with it. Loads its tokenizer and config, no weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.jsonl import read_json
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.folder import base_folder, require_policy, weight_shapes, weight_types


@dataclass(frozen=True)
class ChatModel:
    """A chat checkpoint at a glance.

    Args:
        folder: of the checkpoint.
        architecture: transformers' name of its class.
        parameters: how many weights lie in its files.
        dtype: the type that most of them are stored in, as safetensors calls it.
        context: most tokens it takes; None: it has no limit, or its config does not say.
        end_tokens: the tokens that end its answers, as text.
        temperature: that its generation_config.json asks for; None: it names none.
        thinks: its template writes or expects thoughts before an answer.
        own_template: its tokenizer has a chat template.
        warnings: what a user should know before hours are spent.
    """

    folder: Path
    architecture: str
    parameters: int
    dtype: str
    context: int | None
    end_tokens: tuple[str, ...]
    temperature: float | None
    thinks: bool
    own_template: bool
    warnings: tuple[str, ...]


def look_at(folder: Path, chat_template: str | None = None) -> ChatModel:
    """Look at a checkpoint as the pipeline will use it.

    Args:
        chat_template: of a base model whose tokenizer has none.

    Raises:
        InputError: it is no chat checkpoint: no folder, a reward model, one whose files do not belong together, without
            a chat template, or with one in which an answer does not come back as it went in.
    """
    require_policy(folder)
    from transformers import AutoConfig

    from rlhf.models.checkpoint.pretrained import from_pretrained
    from rlhf.models.policy import load_tokenizer, require_loadable

    base = base_folder(folder)
    shapes = weight_shapes(base)
    kinds = weight_types(base)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    by_type: dict[str, int] = {}
    for name, size in sizes.items():
        by_type[kinds[name]] = by_type.get(kinds[name], 0) + size
    config = from_pretrained(AutoConfig, base)
    context = Context.of(config).length
    tokenizer = load_tokenizer(folder)
    require_loadable(base, tokenizer)
    own_template = bool(tokenizer.chat_template)
    tokenizer.chat_template = tokenizer.chat_template or chat_template
    if not tokenizer.chat_template:
        raise InputError(
            f"chat: {folder} has no chat template, as base models have none; let the run make a chat model of it, with "
            f"--base {folder} --sft FILE … in place of --chat"
        )
    writing = Renderer(tokenizer).writing  # which tries a round trip
    ends = writing.special.findall(writing.end)[-1:] or [writing.added_end]
    warnings = []
    if writing.thinks:
        warnings.append(
            "its chat template knows thoughts: they are trained, but no reward or judge sees them, and they take their "
            "share of max_new_tokens; chat_template_kwargs {enable_thinking: false} does without them"
        )
    if writing.system_refusal:
        warnings.append(
            "its chat template takes no system message; chat_template_kwargs {merge_system: true} puts its text into "
            "the first user's message"
        )
    if context is not None and context < 1024:
        warnings.append(f"its context is {context} tokens: long prompts are left out, long answers cut")
    return ChatModel(
        folder=folder,
        architecture=(config.architectures or [type(config).__name__])[0],
        parameters=sum(sizes.values()),
        dtype=max(by_type, key=lambda kind: by_type[kind]),
        context=context,
        end_tokens=tuple(ends),
        temperature=_temperature(folder) or _temperature(base),
        thinks=writing.thinks,
        own_template=own_template,
        warnings=tuple(warnings),
    )


def _temperature(folder: Path) -> float | None:
    """What a checkpoint's generation_config.json names, if it names one above 0."""
    try:
        settings = read_json(folder / "generation_config.json")
    except (OSError, ValueError):
        return None
    found = settings.get("temperature") if isinstance(settings, dict) else None
    return float(found) if isinstance(found, (int, float)) and 0 < found < math.inf else None
