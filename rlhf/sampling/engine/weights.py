"""What the engine loads: a policy's whole weights and, where it can lay one over them, its adapter. Light: no torch."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import InputError, notice
from rlhf.models.checkpoint.folder import (
    ADAPTER_FOLDER,
    adapter_files,
    base_folder,
    base_quantization,
    is_adapter_checkpoint,
    json_object,
)

if TYPE_CHECKING:
    from rlhf.sampling.source import EngineConfig, PolicySource

ADAPTER_NAME = "adapter"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The longest ranks that the engine may be told to expect."""


@dataclass(frozen=True)
class Served:
    """Folders of whole weights and of an adapter over them; `scratch`: one that goes with the engine."""

    weights: Path
    adapter: Path | None = None
    scratch: Path | None = None

    def words(self) -> list[str]:
        """Of the command: what is served, and by which name."""
        if self.adapter is None:
            return [str(self.weights)]
        rank = json_object(self.adapter / "adapter_config.json")["r"]
        most = next(one for one in RANKS if one >= rank)
        modules = ["--lora-modules", f"{ADAPTER_NAME}={self.adapter}"]
        return [str(self.weights), "--enable-lora", "--max-lora-rank", str(most), *modules]


def served(source: PolicySource, field: str, dtype: str, merge_because: str | None = None) -> Served:
    """What an engine is given of a policy.

    Args:
        field: the source's, for messages.
        dtype: in which an adapter is merged.
        merge_because: why an adapter is not given to it as such, though its settings allow that; None: it is.

    Raises:
        InputError: an adapter of its own beside whole weights is one that the engine does not take.
    """
    checkpoint = source.folder
    if source.adapter is not None:
        adapter = adapter_files(source.adapter)
        quantized = is_adapter_checkpoint(source.adapter) and base_quantization(source.adapter) is not None
        why = merge_because or not_taken(adapter, quantized)
        if why is not None:
            raise InputError(
                f"{field}.adapter: the engine cannot lay {adapter} over the weights ({why}); name a checkpoint into "
                "which it is merged"
            )
        return Served(checkpoint.absolute(), adapter.absolute())
    if not is_adapter_checkpoint(checkpoint):
        return Served(checkpoint.absolute())
    adapter = checkpoint / ADAPTER_FOLDER
    quantization = base_quantization(checkpoint)
    if merge_because is None and not_taken(adapter, quantization is not None) is None:
        return Served(base_folder(checkpoint).absolute(), adapter.absolute())
    from rlhf.models.merging import merged_policy
    from rlhf.models.policy import load_tokenizer, save_policy

    scratch = Path(tempfile.mkdtemp(prefix="rlhf-engine-"))
    notice(f"{field}: the adapter of {checkpoint} is merged into a copy for the engine, {scratch}")
    try:
        model = merged_policy(checkpoint, "simple" if quantization is None else "careful", dtype)
        save_policy(model, load_tokenizer(checkpoint), scratch / "merged")
    except BaseException:
        shutil.rmtree(scratch)
        raise
    return Served(scratch / "merged", scratch=scratch)


def require_laid(checkpoint: Path, engine: EngineConfig, field: str, because: str | None = None) -> None:
    """Whether the engine can lay a checkpoint's adapter over its base, as that goes on being trained.

    Args:
        because: why it cannot lay any.

    Raises:
        InputError: naming the engine's field; it cannot.
    """
    why = because or not_taken(checkpoint / ADAPTER_FOLDER, base_quantization(checkpoint) is not None)
    if why is not None:
        raise InputError(
            f"{field}: {engine.name} cannot lay the policy's adapter over its base ({why}); leave the engine out"
        )


def not_taken(adapter: Path, quantized: bool) -> str | None:
    """Why the engine cannot lay an adapter over whole weights; None: it can, as far as its settings say.

    Args:
        quantized: it was trained over weights in 4 bit.
    """
    settings = json_object(adapter / "adapter_config.json")
    reasons = {
        "it was trained over weights in 4 bit": quantized,
        f"its kind is {settings.get('peft_type')}": settings.get("peft_type") != "LORA",
        "it has use_dora": settings.get("use_dora"),
        "it trains a bias": settings.get("bias", "none") != "none",
        "it saves whole modules": settings.get("modules_to_save"),
        "its rank differs between layers": settings.get("rank_pattern") or settings.get("alpha_pattern"),
        "it lies on experts fused into one tensor": settings.get("target_parameters"),
        f"its rank is above {RANKS[-1]}": settings.get("r", 0) > RANKS[-1],
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
