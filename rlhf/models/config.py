"""Settings of a LoRA adapter. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.errors import InputError


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA on every linear layer but the output head (figures of the QLoRA report).

    Args:
        r: rank of the update.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input, in training only.
        merge: what is saved where the base weights are whole: true writes W + (alpha / r) B A in W's place, a model of
            its own; false the adapter alone, some megabytes that need their base. Over 4-bit weights it is always the
            adapter alone (`recipes/merge_adapter.py` merges it).
    """

    r: int = 64
    alpha: float = 16.0
    dropout: float = 0.1
    merge: bool = True

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(f"r: must be at least 1, got {self.r}")
        if self.alpha <= 0:
            raise InputError(f"alpha: must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class LlamaSize:
    """A Llama to train from scratch, with tied embeddings.

    Args:
        hidden_size: width.
        num_layers: depth.
        num_heads: attention heads; hidden_size is a multiple of them.
        num_kv_heads: key and value heads; num_heads is a multiple of them.
        intermediate_size: width of the gated feed-forward layers.
        context: longest sequence, in tokens.
    """

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 384
    context: int = 256

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "context"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % (2 * self.num_heads):
            raise InputError(
                f"num_heads: hidden_size {self.hidden_size} must be an even multiple, got {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_kv_heads: must divide num_heads, {self.num_heads}, got {self.num_kv_heads}")
