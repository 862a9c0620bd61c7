"""Field types of configs that name a checkpoint, or its chat template (see `rlhf.stage.fields`). Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rlhf.conversation import read_chat_template
from rlhf.models.checkpoint.folder import require_checkpoint
from rlhf.stage import require_files


class WholeCheckpoint:
    """A folder with config, tokenizer and weights, or with an adapter."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        require_files(**{field: value})
        require_checkpoint(value)
        return {field: Path(value)}


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
ChatTemplate = Annotated[str, TemplateName()]
LocalOrHubModel = Annotated[str, FolderOrHubName()]
