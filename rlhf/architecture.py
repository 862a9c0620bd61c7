"""The size of a Llama to train from scratch. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.errors import InputError


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

    def parameters(self, vocabulary: int) -> int:
        """Its weights, with so many rows of embeddings."""
        width, keys = self.hidden_size, self.hidden_size // self.num_heads * self.num_kv_heads
        layer = 2 * width * width + 2 * width * keys + 3 * width * self.intermediate_size + 2 * width
        return vocabulary * width + self.num_layers * layer + width
