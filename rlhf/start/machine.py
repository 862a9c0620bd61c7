"""What this machine has. Loads no torch where there is no GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rlhf.launch import has_gpu

GIB = 2**30
BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16", "svebf16"}
"""What Linux calls the instructions of x86 and ARM that multiply in it; without them torch converts, and is slower."""


@dataclass(frozen=True)
class Machine:
    """cores: of the CPU, for this process. memory: of the CPU, in GiB. gpus: how many. gpu_memory: of one, in GiB.
    bfloat16: whether the CPU multiplies in it, which takes less time than in float32."""

    cores: int
    memory: float
    gpus: int = 0
    gpu_memory: float = 0.0
    bfloat16: bool = False

    @property
    def slots(self) -> int:
        """Processes that run side by side: one a GPU, or one a core."""
        return self.gpus or self.cores

    @property
    def memory_of_one(self) -> float:
        """GiB that one of them has to itself."""
        return self.gpu_memory if self.gpus else self.memory / self.cores


def this_machine() -> Machine:
    """The machine that this runs on."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total / GIB
    if not has_gpu():
        return Machine(cores, memory, bfloat16=not BFLOAT16.isdisjoint(cpu_features()))
    import torch

    from rlhf.training.accelerator import say_unused_gpu

    say_unused_gpu()
    gpus = torch.cuda.device_count()
    of_one = min((torch.cuda.get_device_properties(i).total_memory / GIB for i in range(gpus)), default=0.0)
    return Machine(cores, memory, gpus, of_one)


def cpu_features(said: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What Linux calls the first core's instructions; none where it is another system."""
    try:
        lines = said.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    named = (line.partition(":")[2] for line in lines if line.split(":")[0].strip() in ("flags", "Features"))
    return set(next(named, "").split())
