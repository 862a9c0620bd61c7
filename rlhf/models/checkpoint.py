"""A checkpoint folder on disk: is it whole, which tensors lie in it. Reads headers only, loads no weight."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open

from rlhf.errors import InputError

ADAPTER_FOLDER = "adapter"
HEAD_PREFIXES = ("score.", "classifier.", "classification_head.", "logits_proj.")


def is_adapter_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds an adapter instead of whole weights (what `save_policy` writes after QLoRA)."""
    return (Path(path) / ADAPTER_FOLDER / "adapter_config.json").is_file()


def require_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The folder, after a look for config, weights (safetensors) and tokenizer; InputError names what is missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"checkpoint: {folder} is not a folder; a hub model is fetched by `hf download NAME --local-dir {folder}`"
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"checkpoint: {folder} has no tokenizer_config.json; save the model's tokenizer there")
    if is_adapter_checkpoint(folder):
        return folder
    if not (folder / "config.json").is_file():
        raise InputError(f"checkpoint: {folder} has no config.json; name a folder written by save_pretrained")
    files = weight_files(folder)
    if not files:
        raise InputError(
            f"checkpoint: {folder} has no *.safetensors; save the weights as safetensors (pickled ones are not loaded)"
        )
    for file in files:
        if not file.is_file():
            raise InputError(f"checkpoint: {folder} lacks {file.name}, a part of its weights; copy or save it again")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files of the whole weights: `model.safetensors`, or the parts that the index lists, there or not."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return [p for p in [folder / "model.safetensors"] if p.is_file()]
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Tensor name -> shape over all weight files; InputError for a file that is cut off or no safetensors."""
    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="np") as tensors:
                shapes.update({name: tensors.get_slice(name).get_shape() for name in tensors.keys()})  # noqa: SIM118
        except Exception as error:  # safetensors raises its own kind, and OSError
            raise InputError(f"checkpoint: {file} cannot be read ({error}); copy or save it again") from error
    return shapes


def require_reward_head(path: str | os.PathLike[str]) -> dict[str, list[int]]:
    """Tensor shapes of a whole checkpoint that has a scalar head; InputError where it has none. Loads no torch."""
    folder = require_checkpoint(path)
    shapes = {} if is_adapter_checkpoint(folder) else weight_shapes(folder)
    if not any(name.startswith(HEAD_PREFIXES) for name in shapes):
        raise InputError(
            f"reward model: {folder} has no score.weight, so it is no reward model; train one with "
            "recipes/helpfulness_reward.py or recipes/safety_reward.py"
        )
    return shapes
