"""GGUF files, as llama.cpp and its like hold a model: one file with weights, tokenizer and chat template."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.imports import require_packages

MAGIC = b"GGUF"


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one, by its first bytes; False for a folder."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def write_gguf_checkpoint(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a checkpoint folder: its weights in bfloat16, and its tokenizer.

    Weights that the file holds in fewer bits are what these bits say: nothing is won back.

    Raises:
        InputError: transformers cannot read it: it is broken, or of a kind that transformers does not know.
    """
    require_packages(f"gguf: {file} is read by the package", "gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf.models.checkpoint.pretrained import from_pretrained
    from rlhf.models.checkpoint.saving import quiet_transformers

    with quiet_transformers():
        tokenizer = from_pretrained(AutoTokenizer, file.parent, gguf_file=file.name)
        model = from_pretrained(AutoModelForCausalLM, file.parent, gguf_file=file.name, dtype=torch.float32)
        del model.config.quantization_config  # the weights are plain from here on
        model.hf_quantizer, model.is_quantized = None, False
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
