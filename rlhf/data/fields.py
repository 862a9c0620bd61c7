"""Field types of configs that name rows to read (see `rlhf.stage.fields`). Light."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rlhf.data.loading import source_path, untagged
from rlhf.stage import require_files


class LocalOrHub:
    """A file or folder of this machine, which must exist and is an input, or a hub name, which is neither."""

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        path = source_path(value)
        if path is None:
            return {}
        require_files(**{re.sub(r"\.\d+$", "", field): path})  # the path tells which of several
        return {field if untagged(value) == value else f"{field}.rows": path}  # the domain in a name stays an option


DataSource = Annotated[str, LocalOrHub()]
DataSources = DataSource | tuple[DataSource, ...]  # one name needs no list
