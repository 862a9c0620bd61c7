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
