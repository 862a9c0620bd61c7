"""What a chat checkpoint is, read before anything is planned with it. Loads its tokenizer and config, no weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.models.checkpoint.folder import base_folder, require_policy, weight_shapes, weight_types

PROBE: Conversation = [
    {"role": "user", "content": "What is 2 plus 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "And 4 plus 4?"},
    {"role": "assistant", "content": "It is 8."},
]


@dataclass(frozen=True)
class ChatModel:
    """A chat checkpoint at a glance.

    Args:
        folder: of the checkpoint.
        architecture: transformers' name of its class.
        parameters: how many weights lie in its files.
        dtype: the type that most of them are stored in, as safetensors calls it.
        context: most tokens it takes; None: its config does not say.
        end_tokens: the tokens that end its answers, as text.
        temperature: that its generation_config.json asks for; None: it names none.
        thinks: its template writes or expects thoughts before an answer.
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
    warnings: tuple[str, ...]


def look_at(folder: Path) -> ChatModel:
    """Look at a checkpoint as the pipeline will use it.

    Raises:
        InputError: it is no chat checkpoint: no folder, a reward model, without a chat template, or with one in which
            an answer does not come back as it went in.
    """
    require_policy(folder)
    from transformers import AutoConfig

    from rlhf.models.checkpoint.pretrained import from_pretrained
    from rlhf.models.policy import load_tokenizer

    base = base_folder(folder)
    shapes = weight_shapes(base)
    kinds = weight_types(base)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    by_type: dict[str, int] = {}
    for name, size in sizes.items():
        by_type[kinds[name]] = by_type.get(kinds[name], 0) + size
    config = from_pretrained(AutoConfig, base)
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    tokenizer = load_tokenizer(folder)
    thinks = "think" in str(tokenizer.chat_template or "")
    renderer = Renderer(tokenizer)
    ends = _round_trip(folder, renderer)
    warnings = []
    if thinks:
        warnings.append("its chat template knows thoughts: answers that hold them are scored and trained as they are")
    if context is not None and context < 1024:
        warnings.append(f"its context is {context} tokens: long prompts are left out, long answers cut")
    return ChatModel(
        folder=folder,
        architecture=(config.architectures or [type(config).__name__])[0],
        parameters=sum(sizes.values()),
        dtype=max(by_type, key=lambda kind: by_type[kind]),
        context=context,
        end_tokens=ends,
        temperature=_temperature(folder) or _temperature(base),
        thinks=thinks,
        warnings=tuple(warnings),
    )


def _temperature(folder: Path) -> float | None:
    """What a checkpoint's generation_config.json names, if it names one above 0."""
    try:
        settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = settings.get("temperature") if isinstance(settings, dict) else None
    return float(found) if isinstance(found, (int, float)) and 0 < found < math.inf else None


def _round_trip(folder: Path, renderer: Renderer) -> tuple[str, ...]:
    """Render two turns; the trained tokens must read back as the two answers. Returns what ends an answer, as text."""
    rendered = renderer.dialogue(PROBE)
    answers: list[list[int]] = []
    for before, (token, trained) in zip(
        [False, *map(bool, rendered.loss_mask)], zip(rendered.input_ids, rendered.loss_mask, strict=True), strict=False
    ):
        if trained and not before:
            answers.append([])
        if trained:
            answers[-1].append(token)
    texts = [renderer.answer_text(tokens).strip() for tokens in answers]
    wanted = [message["content"] for message in PROBE if message["role"] == "assistant"]
    if texts != wanted:
        raise InputError(
            f"chat: the template of {folder} gives the answers {wanted} back as {texts}; "
            "give the checkpoint a template whose answers stand alone, e.g. by recipes/sft.py with --chat_template"
        )
    return tuple(dict.fromkeys(str(renderer.tokenizer.decode(tokens[-1:])) for tokens in answers))
