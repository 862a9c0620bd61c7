"""A checkpoint folder on disk: is it whole, which tensors lie in it. Reads headers only, loads no weight."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from rlhf.errors import InputError, quoted
from rlhf.jsonl import read_json
from rlhf.paths import HUB_NAME, in_hub_cache

ADAPTER_FOLDER = "adapter"
ADAPTER_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"
ADAPTER_PREFIX = "base_model.model."
"""What peft puts before the names of the model that it wraps."""
SAFETY_HEAD_FILE = "safety_head.safetensors"
"""Of a reward model that has a second head; plain transformers passes it by."""
NO_WEIGHT = ("BOOL", "I16", "I32", "I64", "C64")
"""Types, in safetensors' words, that weights in few bits are not held in either."""
HEAD_PREFIXES = ("score.", "classifier.", "classification_head.", "logits_proj.")


def is_adapter_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds an adapter instead of whole weights (see `rlhf.models.policy` on when that is saved)."""
    return (Path(path) / ADAPTER_FOLDER / "adapter_config.json").is_file()


def adapter_settings(folder: Path) -> dict[str, Any]:
    """peft's settings of the adapter in a checkpoint."""
    file = folder / ADAPTER_FOLDER / "adapter_config.json"
    settings = json_object(file)
    if not isinstance(settings.get("base_model_name_or_path"), str):
        raise InputError(f"checkpoint: {file} names no base_model_name_or_path; name there the folder of its base")
    return settings


def adapter_files(path: str | os.PathLike[str]) -> Path:
    """The folder in which peft's files of a policy's adapter lie: `path`, or `path`/adapter of a checkpoint of ours.

    Raises:
        InputError: there is no adapter, or it is a reward model's.
    """
    folder = Path(path) / ADAPTER_FOLDER if is_adapter_checkpoint(path) else Path(path)
    for name in ("adapter_config.json", ADAPTER_FILE):
        if not (folder / name).is_file():
            raise InputError(f"adapter: {folder} has no {name}; name a folder that peft's save_pretrained wrote")
    with safe_open(folder / ADAPTER_FILE, framework="np") as tensors:
        names = [name.removeprefix(ADAPTER_PREFIX) for name in tensors.keys()]  # noqa: SIM118
    if any(name.startswith(HEAD_PREFIXES) for name in names):
        raise InputError(f"adapter: {folder} is a reward model's, which says nothing; name a policy's")
    return folder


def base_quantization(folder: Path) -> Literal["nf4"] | None:
    """How the base of an adapter checkpoint was held in training, and is to be loaded: in 4 bit or whole (None)."""
    file = folder / ADAPTER_FOLDER / BASE_FILE
    quantization = json_object(file).get("quantization", "of no kind") if file.is_file() else "nf4"
    if quantization not in ("nf4", None):
        raise InputError(f"checkpoint: {file} has the quantization {quantization!r}, known are nf4 and null")
    return "nf4" if quantization else None


def write_base_quantization(folder: Path, quantization: Literal["nf4"] | None) -> None:
    """Note beside the adapter of a checkpoint what `base_quantization` reads; put the layers that peft names in order.

    peft writes them from a set, in another order in every process: the same adapter would not be the same files.
    """
    settings = adapter_settings(folder)
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
        file = folder / ADAPTER_FOLDER / "adapter_config.json"
        file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    text = json.dumps({"quantization": quantization}) + "\n"
    (folder / ADAPTER_FOLDER / BASE_FILE).write_text(text, encoding="utf-8")


def base_folder(path: str | os.PathLike[str]) -> Path:
    """The folder with a checkpoint's config and whole weights: its own, or that of the base which its adapter is over.

    Raises:
        InputError: the base is gone, or is a model of the hub's that was not fetched.
    """
    if not is_adapter_checkpoint(path):
        return Path(path)
    return named_base(path, adapter_settings(Path(path))["base_model_name_or_path"])


def named_base(path: str | os.PathLike[str], base: str) -> Path:
    """The folder of the base that the adapter in `path` names: that folder itself, or of a hub name that in its cache.

    Raises:
        InputError: see `base_folder`.
    """
    found = Path(base) if Path(base).is_dir() else in_hub_cache(base)
    if found is None:
        fetched = f", or fetch it from the hub by `hf download {base}`" if HUB_NAME.fullmatch(base) else ""
        raise InputError(
            f"checkpoint: {path} is an adapter over {base}, which does not exist; bring that folder back{fetched}"
        )
    return found


def require_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The folder, after a look for config, weights (safetensors) and tokenizer; InputError names what is missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"checkpoint: {folder} is not a folder; name one, or a hub model that `hf download` fetched into its cache"
        )
    if not (folder / "tokenizer_config.json").is_file() and (folder / "checkpoint").is_dir():
        raise InputError(
            f"checkpoint: {folder} is the folder of a stage; name {folder / 'checkpoint'}, the model in it"
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"checkpoint: {folder} has no tokenizer_config.json; save the model's tokenizer there")
    if not is_adapter_checkpoint(folder) and not (folder / "config.json").is_file():
        raise InputError(f"checkpoint: {folder} has no config.json; name a folder written by save_pretrained")
    require_draws(folder)
    files = weight_files(folder)
    if not files:
        raise InputError(
            f"checkpoint: {folder} has no *.safetensors; save the weights as safetensors (pickled ones are not loaded)"
        )
    for file in files:
        if not file.is_file():
            raise InputError(f"checkpoint: {folder} lacks {file.name}, a part of its weights; copy or save it again")
    return folder


def require_draws(folder: Path) -> None:
    """InputError where a folder's generation_config.json is damaged: transformers passes such a one by, and the end
    tokens that it names with it."""
    file = folder / "generation_config.json"
    if not file.exists():
        return
    given = json_object(file).get("eos_token_id")
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if wrong := [end for end in ends if type(end) is not int or end < 0]:
        raise InputError(
            f"checkpoint: {file} has the eos_token_id {quoted(wrong[0])}; give a token's number, or a list of them"
        )


def require_trainable(path: str | os.PathLike[str]) -> Path:
    """The folder, as `require_checkpoint`; InputError also where its weights are held in few bits already.

    They can be run. But no weight of them is trained and saved again, and what an adapter over them would be merged
    into is not there.
    """
    folder = require_checkpoint(path)
    config = base_folder(folder) / "config.json"
    held = json_object(config).get("quantization_config") if config.is_file() else None
    if held:
        raise InputError(
            f"checkpoint: {config.parent} holds its weights quantised already ({held.get('quant_method', 'unknown')}), "
            "and such ones are run, not trained; name a folder with the model's whole weights (with an adapter, "
            "quantization nf4 holds those in 4 bit)"
        )
    return folder


def json_object(file: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file; InputError where there is none."""
    try:
        found = read_json(file)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"checkpoint: {file} holds no JSON object; copy or save it again")
    return found


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the parts that the index lists, or an adapter's file; the latter two there or not."""
    if is_adapter_checkpoint(folder):
        return [folder / ADAPTER_FOLDER / ADAPTER_FILE]
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return [p for p in [folder / "model.safetensors"] if p.is_file()]
    parts = json_object(index).get("weight_map")
    if not isinstance(parts, dict) or not all(
        isinstance(part, str) and Path(part).name == part != ".." for part in parts.values()
    ):
        raise InputError(
            f"checkpoint: {index} has no weight_map of tensors' names to files beside it; copy or save it again"
        )
    return [folder / name for name in sorted(set(parts.values()))]


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Tensor name -> shape over all weight files; InputError for a file that is cut off, no safetensors, or holds a
    weight in whole numbers."""
    return {name: shape for name, (shape, _) in _headers(folder).items()}


def weight_types(folder: Path) -> dict[str, str]:
    """Tensor name -> type as safetensors calls it (F32, BF16 …); errors as `weight_shapes`."""
    return {name: dtype for name, (_, dtype) in _headers(folder).items()}


def _headers(folder: Path) -> dict[str, tuple[list[int], str]]:
    found: dict[str, tuple[list[int], str]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="np") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                found.update({name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()})
        except Exception as error:  # safetensors raises its own kind, and OSError
            raise InputError(f"checkpoint: {file} cannot be read ({error}); copy or save it again") from error
    for name, (_, dtype) in found.items():
        if dtype in NO_WEIGHT and name.endswith((".weight", ".bias")):
            raise InputError(
                f"checkpoint: {folder} holds {name} as {dtype}, which no weight is trained in; save it again as floats"
            )
    return found


def head_shapes(path: str | os.PathLike[str]) -> dict[str, list[int]]:
    """Tensor name -> shape of the scalar head in a checkpoint, whole or of an adapter; empty for a policy."""
    shapes = {
        name.removeprefix(ADAPTER_PREFIX): shape for name, shape in weight_shapes(require_checkpoint(path)).items()
    }
    return {name: shape for name, shape in shapes.items() if name.startswith(HEAD_PREFIXES)}


def is_reward_model(path: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a model with a scalar head; False also where there are no weights to tell by."""
    try:
        return bool(head_shapes(path))
    except InputError:
        return False


def require_policy(path: str | os.PathLike[str]) -> Path:
    """The folder, as `require_checkpoint`; InputError also where it is a reward model, or its weights are cut off."""
    heads = head_shapes(path)
    if heads:
        raise InputError(
            f"policy: {path} is a reward model (it has {next(iter(heads))}), which says nothing; name a language model"
        )
    return Path(path)


def require_reward_head(path: str | os.PathLike[str]) -> dict[str, list[int]]:
    """`head_shapes`; InputError where there is none. Loads no torch."""
    heads = head_shapes(path)
    if not heads:
        raise InputError(
            f"reward model: {path} has no score.weight, so it is no reward model; train one with "
            "recipes/helpfulness_reward.py or recipes/safety_reward.py"
        )
    return heads


def require_policy_adapter(checkpoint: str | os.PathLike[str], merge: str) -> Path:
    """The folder; InputError where it holds no adapter of a policy, or none to merge so ("simple", "careful")."""
    folder = require_checkpoint(checkpoint)
    if not is_adapter_checkpoint(folder):
        raise InputError(f"checkpoint: {folder} has whole weights and no adapter; there is nothing to merge")
    if head_shapes(folder):
        raise InputError(f"checkpoint: {folder} is the adapter of a reward model; only a policy's can be merged")
    if merge == "careful" and base_quantization(folder) is None:
        raise InputError(
            f"merge: the adapter of {folder} was trained over whole weights, which no quantisation ever touched; "
            "merge it with --merge simple"
        )
    return folder
