"""One way to make an Accelerator that really has the processes that were asked for. torch is loaded when called."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

from rlhf.errors import notice
from rlhf.launch import PRECISION_UNSAID, has_gpu

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import KwargsHandler

PATIENCE = timedelta(hours=3)
"""How long a process waits for the others: the main one may tokenize, or ask a judge, for longer than the ten minutes
after which NCCL ends all of them. A process that died is no reason to wait, as its launcher ends the others."""


def make_accelerator(*, accumulation_steps: int = 1, seed: int = 0) -> Accelerator:
    """Accelerator for this process; seeds Python, numpy and torch.

    On a GPU matrices are multiplied in bfloat16 unless another mixed precision is asked for (`mixed_precision`), and in
    TF32 where they are float32.

    Without a GPU gloo is asked for: DeepSpeed would otherwise fall back, without a word, to runs of one process each.
    Processes wait three hours for one another (`PATIENCE`). A world smaller than the launcher's WORLD_SIZE is refused.
    Under DeepSpeed, models are loaded whole and divided after that (`rlhf.training.whole.divide`): transformers would
    partition every model at loading, also those that are never prepared.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import set_seed

    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if not torch.cuda.is_available():
        say_unused_gpu()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns of guessing it, wherever it is only installed
        if deepspeed:
            _without_shared_memory_op()
    else:
        torch.set_float32_matmul_precision("high")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    handlers: list[KwargsHandler] = []
    if asked > 1:
        handlers += [InitProcessGroupKwargs(backend=backend, timeout=PATIENCE)]
        handlers += [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]  # one copy of the gradients, not two
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available() and not deepspeed,
        mixed_precision=mixed_precision(),
        gradient_accumulation_steps=accumulation_steps,
        kwargs_handlers=handlers,
        step_scheduler_with_optimizer=False,
    )
    if accelerator.num_processes != asked:
        raise RuntimeError(f"the launcher asked for {asked} processes but only {accelerator.num_processes} joined")
    if deepspeed:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        # one line a collective and process: DeepSpeed calls what newer torch has given another name
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    set_seed(seed)
    return accelerator


def say_unused_gpu() -> None:
    """Where this process may use a GPU and torch cannot, everything runs on the CPU: say so."""
    import torch

    if has_gpu() and not torch.cuda.is_available():
        cuda = torch.version.cuda
        why = "it is built without CUDA" if cuda is None else f"its CUDA {cuda} and the driver do not go together"
        notice(f"GPU: there is one, and torch {torch.__version__} cannot use it ({why}); everything runs on the CPU")


def mixed_precision() -> str | None:
    """ "bf16" or "no", by what the GPU computes in, where nobody asked for one; None: somebody did, or there is no GPU.

    Asked for it is by accelerate's environment, unless `rlhf.launch` says that it was left open.
    """
    import torch

    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get(PRECISION_UNSAID) != "true"
    if asked or not torch.cuda.is_available():
        return None
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def frozen_dtype(device: torch.device | str) -> str:
    """Type by name in which a model that is only run is held: that of the mixed precision, else float32.

    Args:
        device: of the model. Beside a GPU, what runs on the CPU stays float32.
    """
    import torch
    from accelerate.state import AcceleratorState

    if torch.cuda.is_available() and torch.device(device).type == "cpu":
        return "float32"
    if AcceleratorState._shared_state:  # an accelerator has been made
        precision = AcceleratorState().mixed_precision
    else:
        precision = mixed_precision() or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")


def trained_dtype(accelerator: Accelerator) -> str:
    """Type by name in which weights that are trained whole run forward: float32, of which autocast makes another for
    its products; under DeepSpeed that of the mixed precision."""
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
    return frozen_dtype(accelerator.device) if deepspeed else "float32"


def _without_shared_memory_op() -> None:
    """Plain gloo for DeepSpeed on CPU: its shared-memory op is compiled at first use (40 s)."""
    import deepspeed.ops

    getattr(deepspeed.ops, "__compatible_ops__", {}).pop("deepspeed_shm_comm", None)
