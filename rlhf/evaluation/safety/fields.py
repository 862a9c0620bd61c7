"""Field types of configs that name a judge of answers (see `rlhf.stage.fields`). Light."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rlhf.paths import require_files
from rlhf.rewards.specs import is_import_path


class RefusalDetector:
    """`rules` or an import path, which read nothing, or the file of a trained detector."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        if value == "rules" or is_import_path(value):
            return {}
        require_files(**{field: value})
        return {field: Path(value)}


Refusals = Annotated[str, RefusalDetector()]
