"""Is there certainly too little memory for some models? Asked before their weights are loaded; reads headers alone.

Only what cannot be less is counted: weights, and for those that are trained their gradients and AdamW's two moments.
Activations come on top, so what passes here may still not fit: `--dry_run` of the PPO recipe reckons with them too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from rlhf.errors import InputError
from rlhf.launch import processes_here
from rlhf.models.checkpoint.folder import base_folder, base_quantization, is_adapter_checkpoint, weight_shapes

GIB = 2**30
TRAINED = 16
"""Bytes of a weight that is trained: float32 weight and gradient, and two moments."""
HELD = 4
"""Bytes of a weight that is only run, in float32."""
NF4 = 0.55
"""Bytes of a weight in 4 bit with double quantisation."""


def available_memory(accelerator: Accelerator) -> float:
    """Bytes that this process can have at most: its GPU's, or its part of the machine's."""
    if accelerator.device.type == "cuda":
        return float(torch.cuda.get_device_properties(accelerator.device).total_memory)
    return float(psutil.virtual_memory().total) / processes_here()


def parameters_of(checkpoint: str | os.PathLike[str]) -> int:
    """How many weights lie in a checkpoint's files, or in those of the base that its adapter is over."""
    return sum(math.prod(shape) for shape in weight_shapes(base_folder(Path(checkpoint))).values())


def require_memory(needs: Mapping[str, float], accelerator: Accelerator, *, trained: bool = True) -> None:
    """InputError where the models' weights alone, with what training them takes, are more than there is.

    Nothing is said under DeepSpeed, which divides and offloads.

    Args:
        needs: role -> bytes, e.g. `TRAINED * parameters_of(policy)`.
        trained: whether training is what takes it; otherwise holding does.
    """
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
    needed, available = sum(needs.values()), available_memory(accelerator)
    if deepspeed or needed <= available:
        return
    roles = ", ".join(f"{role} {size / GIB:.1f}" for role, size in needs.items())
    ways_out = (
        "train an adapter (--adapter.r 64; PPO: --roles shared), hold the base in 4 bit (--quantization nf4), or "
        "divide the weights (ds_configs/accelerate_zero3.yaml)"
        if trained
        else "start fewer processes, take a machine or GPU that has more, or a smaller model"
    )
    raise InputError(
        f"memory: at least {needed / GIB:.1f} GiB are needed ({roles}), and a process has {available / GIB:.1f}; "
        f"{ways_out}"
    )


def held_bytes(checkpoint: str | os.PathLike[str], *, quantization: str | None = None, dtype: str = "float32") -> float:
    """What a model that is only run takes at least. An adapter's base may be held in 4 bit or in half precision."""
    if quantization == "nf4" or (is_adapter_checkpoint(checkpoint) and base_quantization(Path(checkpoint)) == "nf4"):
        size = NF4
    else:
        size = HELD if dtype == "float32" and not is_adapter_checkpoint(checkpoint) else 2
    return size * parameters_of(checkpoint)


def trained_bytes(checkpoint: str | os.PathLike[str], *, adapter: bool, quantization: str | None) -> float:
    """What a model to be trained takes at least: all of it, or only its frozen base where an adapter is trained."""
    count = parameters_of(checkpoint)
    if not adapter:
        return float(TRAINED * count)
    return (NF4 if quantization == "nf4" else 2) * count
