"""The model that a run is given, in whatever form, as one folder of whole weights.

    models/my_chat_model        a checkpoint folder: it is used where it lies
    org/name                    a model that `hf download org/name` fetched: the folder in the hub's cache
    my_chat_model-Q8_0.gguf     a GGUF file: its weights are written out once, in bfloat16
    runs/my_sft/checkpoint      an adapter, of ours or of peft's: it is merged into its base once

What a run trains it begins at this folder, with adapters of its own; so an adapter that is given becomes weights first.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rlhf.errors import InputError
from rlhf.imports import require_packages
from rlhf.models.checkpoint.folder import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    adapter_files,
    base_folder,
    base_quantization,
    is_adapter_checkpoint,
    json_object,
    named_base,
    require_checkpoint,
    write_base_quantization,
)
from rlhf.models.checkpoint.gguf import is_gguf, write_gguf_checkpoint
from rlhf.paths import HUB_NAME, in_hub_cache
from rlhf.stage.card import CARD_FILE, card_metadata, short, with_metadata

FOLDER = "chat_model"
"""Of a run, for what is written of a GGUF file or an adapter."""
PLAIN_LORA = {"peft_type": "LORA", "bias": "none", "use_dora": False}
"""What peft's settings say of an adapter that is W + (alpha / r) B A and nothing else."""


def find_model(field: str, named: Path) -> Path:
    """The folder or file on this machine that a user means by a path or a hub name. Loads nothing.

    Raises:
        InputError: naming the field: it is not there, or what reads it is not installed.
    """
    if not named.exists():
        found = in_hub_cache(named)
        if found is not None:
            return found
        if HUB_NAME.fullmatch(str(named)):
            raise InputError(
                f"{field}: {named} is not a folder, and no model in the hub's cache here; fetch it by `hf download "
                f"{named}`, then give the same command again"
            )
    elif named.is_file():
        if not is_gguf(named):
            raise InputError(f"{field}: {named} is a file, and no GGUF; name the folder of a checkpoint")
        require_packages(f"gguf: {named} is read by the package", "gguf")
    elif not (named / "config.json").is_file() and (files := sorted(named.glob("*.gguf"))):
        raise InputError(f"{field}: {named} holds GGUF files; name one of them, such as {files[0]}")
    return named


def write_model(source: Path, folder: Path) -> str | None:
    """Write a GGUF file's or an adapter's model to `folder`, and say so; None: the source is a checkpoint as it is.

    Args:
        folder: must not exist; on failure what is in it is of no use.

    Raises:
        InputError: it cannot be read, or is an adapter of a kind that is not merged here.
    """
    words, base = "the adapter of {}, merged into {}", source
    if is_gguf(source):
        write_gguf_checkpoint(source, folder)
        words = "the weights of {} in bfloat16"
    elif is_adapter_checkpoint(source):
        base = _write_merged(require_checkpoint(source), folder)
    elif (source / "adapter_config.json").is_file() and not (source / "config.json").is_file():
        ours = folder.with_name(f"{folder.name}_adapter")
        _adopt(source, ours)
        base = _write_merged(ours, folder)
        shutil.rmtree(ours)
    else:
        return None
    metadata = card_metadata(False, False, "new", [source, base], [])
    text = f"\n# Policy, by rlhf new\n\nIt is {words.format(short(source), short(base))}.\n"
    (folder / CARD_FILE).write_text(with_metadata(text, metadata), encoding="utf-8")
    return words.format(source, base)


def _write_merged(checkpoint: Path, folder: Path) -> Path:
    """Merge an adapter checkpoint as it was trained, in its base's type; returns the base."""
    from rlhf.models.checkpoint.saving import SourceTypes
    from rlhf.models.merging import merged_policy
    from rlhf.models.policy import load_tokenizer, save_policy

    base = require_checkpoint(base_folder(checkpoint))
    dtype = str(SourceTypes.of_folder(base).default).removeprefix("torch.")
    model = merged_policy(checkpoint, "simple" if base_quantization(checkpoint) is None else "careful", dtype)
    save_policy(model, load_tokenizer(checkpoint), folder)
    return base


def _adopt(source: Path, folder: Path) -> None:
    """Lay out a folder that peft wrote as an adapter checkpoint of ours, over whole weights, as peft itself loads it.

    Its tokenizer counts where it has one, else its base's.
    """
    files = adapter_files(source)
    settings = json_object(files / "adapter_config.json")
    other = [name for name, value in PLAIN_LORA.items() if (settings.get(name) or value) != value]
    other += [name for name in ("modules_to_save", "trainable_token_indices") if settings.get(name)]
    if other:
        raise InputError(
            f"adapter: {source} has {other[0]} {settings[other[0]]!r}, which is not merged here; merge it by peft's "
            "merge_and_unload, and name the folder that you save that into"
        )
    base = require_checkpoint(named_base(source, str(settings["base_model_name_or_path"])))
    adapter = folder / ADAPTER_FOLDER
    adapter.mkdir(parents=True)
    from transformers import AutoTokenizer

    from rlhf.models.checkpoint.pretrained import from_pretrained

    with_tokenizer = source if (source / "tokenizer_config.json").is_file() else base
    from_pretrained(AutoTokenizer, with_tokenizer).save_pretrained(folder)
    shutil.copyfile(files / ADAPTER_FILE, adapter / ADAPTER_FILE)
    text = json.dumps(settings | {"base_model_name_or_path": str(base.resolve())})
    (adapter / "adapter_config.json").write_text(text, encoding="utf-8")
    write_base_quantization(folder, None)
