"""Field types of configs that name a checkpoint, or its chat template (see `rlhf.stage.fields`). Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rlhf.conversation import read_chat_template
from rlhf.models.checkpoint.folder import require_checkpoint, require_trainable
from rlhf.paths import NamesModel, require_files


class WholeCheckpoint(NamesModel):
    """A folder with config, tokenizer and weights, or with an adapter.

    Args:
        trained: the stage trains it, by the `adapter` and `quantization` of its config; otherwise it is held as it is.
    """

    def __init__(self, trained: bool = False) -> None:
        self.trained = trained

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        require_files(**{field: value})
        (require_trainable if self.trained else require_checkpoint)(value)
        return {field: Path(value)}

    def require_memory(self, field: str, value: Any, config: Any, processes: Any) -> None:
        """See `rlhf.stage.fields.MemoryCheck`."""
        from rlhf.models.checkpoint.memory import held_bytes, require_memory, trained_bytes

        settings = config if hasattr(config, "quantization") else getattr(config, "training", config)
        adapter, quantization = (getattr(settings, name, None) for name in ("adapter", "quantization"))
        if self.trained:
            size = trained_bytes(value, adapter=adapter is not None, quantization=quantization)
        else:
            dtype = "bfloat16" if adapter is not None else getattr(config, "dtype", "float32")
            size = held_bytes(value, quantization=quantization, dtype=dtype)
        require_memory({field: size}, processes, trained=self.trained)


class TemplateName:
    """`llama2`, or the file of a chat template, which is an input."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        read_chat_template(value)
        return {} if value == "llama2" else {field: Path(value)}


class FolderOrHubName:
    """A model's folder, which is an input where it is there, or a hub name."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        return {field: Path(value)} if Path(value).exists() else {}


Checkpoint = Annotated[Path, WholeCheckpoint()]
TrainedCheckpoint = Annotated[Path, WholeCheckpoint(trained=True)]
ChatTemplate = Annotated[str, TemplateName()]
LocalOrHubModel = Annotated[str, FolderOrHubName()]
