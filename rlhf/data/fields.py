"""Field types of configs that name rows to read (see `rlhf.stage.fields`). Light."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rlhf.data.loading import is_local
from rlhf.stage import require_files


class LocalOrHub:
    """A file or folder of this machine, which must exist and is an input, or a hub name, which is neither."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        if not is_local(value):
            return {}
        require_files(**{field: value})
        return {field: Path(value)}


DataSource = Annotated[str, LocalOrHub()]
