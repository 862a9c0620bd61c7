"""The policy that PPO trains, as its users name it: where it starts, and who draws its answers. Light: no torch.

    policy: runs/demo/v3/rejection_sampling/checkpoint                     # a bare text is the checkpoint
    policy: {checkpoint: models/llama2-7b-chat, engine: vllm}

On a command line that is `--policy FOLDER --policy.engine vllm`, the words of a `rlhf.sampling.source.PolicySource`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rlhf.models.checkpoint.fields import WholeCheckpoint
from rlhf.models.checkpoint.folder import is_adapter_checkpoint
from rlhf.paths import NamesModel
from rlhf.sampling.engine.weights import require_laid
from rlhf.sampling.source import EngineConfig
from rlhf.shorthand import BARE


@dataclass(frozen=True, kw_only=True)
class PPOPolicy:
    """The policy in training. A bare text in its place is the checkpoint.

    Args:
        checkpoint: folder to start from; its frozen copy is the reference.
        engine: an inference engine that draws the answers of each iteration from its newest weights, `vllm`; null: the
            policy itself draws them, in this process.
    """

    checkpoint: Annotated[Path, BARE, NamesModel()]
    engine: EngineConfig | None = None


class PPOPolicyCheck:
    """At a field of a `PPOPolicy`: its checkpoint is whole, and the engine can draw from it as it is trained."""

    def inputs(self, field: str, value: PPOPolicy, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`: the checkpoint, under the field's own name."""
        found = WholeCheckpoint().inputs(field, value.checkpoint, config)
        if value.engine is None:
            return found
        value.engine.command(f"{field}.engine")
        if is_adapter_checkpoint(value.checkpoint):
            require_laid(value.checkpoint, value.engine, f"{field}.engine")
        return found

    def require_memory(self, field: str, value: PPOPolicy, config: Any, processes: Any) -> None:
        """See `rlhf.stage.fields.MemoryCheck`."""
        from rlhf.models.checkpoint.memory import held_bytes, require_memory
        from rlhf.training.accelerator import frozen_dtype

        WholeCheckpoint().require_memory(field, value.checkpoint, config, processes)
        if value.engine is not None and "quantization" not in value.engine.options:
            size = held_bytes(value.checkpoint, dtype=config.dtype or frozen_dtype(processes.device))
            require_memory({f"{field}.engine": size / value.engine.gpus}, processes, trained=False)


TrainedByPPO = Annotated[PPOPolicy, PPOPolicyCheck()]
