"""What a saved chat model tells other programs: every end token of its training format, and how to draw its answers.

transformers' `generate`, vllm and their kin stop at `generation_config.eos_token_id`, one id or a list. A base model
brings its own there, and its fine-tuned self would never stop where the template's end token is another one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.models.checkpoint.folder import base_folder
from rlhf.models.checkpoint.pretrained import from_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_end_tokens(model: Any) -> frozenset[int]:
    """The end tokens that a model's generation_config names, one or a list; empty where it has none."""
    return _end_tokens(getattr(model, "generation_config", None))


def saved_end_tokens(path: str | os.PathLike[str]) -> frozenset[int]:
    """`own_end_tokens` of the model in a checkpoint, whole or of an adapter, which is not loaded for that."""
    from transformers import AutoConfig, GenerationConfig

    folders = (Path(path), base_folder(path))
    said = next((folder for folder in folders if (folder / "generation_config.json").is_file()), None)
    if said is not None:
        return _end_tokens(from_pretrained(GenerationConfig, said))
    return _end_tokens(GenerationConfig.from_model_config(from_pretrained(AutoConfig, folders[-1])))


def _end_tokens(settings: Any) -> frozenset[int]:
    ends = getattr(settings, "eos_token_id", None)
    return frozenset(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])


def say_how_to_stop(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put end and pad tokens of the training format into a model's config and generation_config, in place.

    And into the tokenizer the chat template by which it was trained: a prompt ends where an answer begins.

    The ends are those of the chat template and of the tokenizer, then what generation_config named before; a single
    one is written as a number. A tokenizer without a template, or with one that `Renderer` refuses, brings its own end
    token alone.
    """
    try:
        renderer = Renderer(tokenizer)
        trained, tokenizer.chat_template = sorted(renderer.end_token_ids), renderer.writing.template
    except InputError:
        trained = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends = [*trained, *sorted(own_end_tokens(model) - set(trained))]
    found = ends[0] if len(ends) == 1 else ends or None
    generation = getattr(model, "generation_config", None)
    for settings in (model.config, generation):
        if settings is not None:
            settings.eos_token_id, settings.pad_token_id = found, tokenizer.pad_token_id
    if generation is not None:
        try:
            generation.validate(strict=True)
        except ValueError:  # a base's temperature without do_sample: transformers reads that, but does not write it
            generation.do_sample = True


def say_how_to_draw(model: Any, temperature: float) -> None:
    """Put the distribution that a policy is trained at into its generation_config, in place: that at `temperature`.

    It was trained with nothing cut off or penalised, so what the start named of that is switched off: elsewhere it
    would be another policy. At 1, the model as it is, what the start named stays: a matter of taste as before.
    """
    if temperature == 1:
        return
    generation = model.generation_config
    generation.do_sample, generation.temperature = True, temperature
    generation.top_p, generation.top_k, generation.min_p, generation.repetition_penalty = 1.0, 0, None, 1.0
