"""What a planned PPO run would have to run on. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf.errors import InputError


@dataclass(frozen=True)
class Hardware:
    """The machine of `rlhf.ppo.planning`: nothing here is looked up, so that a laptop can plan for a cluster.

    Args:
        devices: GPUs, or CPU processes, over all machines.
        memory_gib: of one of them.
        teraflops: of one of them, what its data sheet says for the type that the models compute in.
        gigabytes_per_second: memory bandwidth of one of them; writing answers is bound by it.
        efficiency: share of `teraflops` that training reaches.
        zero_stage: DeepSpeed ZeRO, 0 is plain data parallel.
        offload: ZeRO-3 keeps weights and optimizer in the CPU's memory.
        mixed_precision: as for accelerate.
        prompt_tokens: a long prompt of the run; max_new_tokens come on top.
    """

    devices: int = 1
    memory_gib: float = 80.0
    teraflops: float = 300.0
    gigabytes_per_second: float = 2000.0
    efficiency: float = 0.4
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False
    mixed_precision: Literal["no", "bf16"] = "bf16"
    prompt_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("devices", "memory_gib", "teraflops", "gigabytes_per_second", "efficiency", "prompt_tokens"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: must be above 0, got {getattr(self, name)}")
        if self.offload and self.zero_stage != 3:
            raise InputError(f"offload: is for zero_stage 3, got {self.zero_stage}")
