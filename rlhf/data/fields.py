"""Field types of configs that name rows to read (see `rlhf.stage.fields`). Light."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rlhf.data.loading import repository_of, source_path, untagged, use_layout
from rlhf.paths import require_files


class LocalOrHub:
    """A file or folder of this machine, which must exist and is an input, or a hub name, which is neither.

    A layout of one's own that the name carries must be there too.
    """

    def inputs(self, field: str, value: Any, config: Any) -> Mapping[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        use_layout(value)
        path = source_path(value)
        if path is None:
            return {}
        require_files(**{re.sub(r"\.\d+$", "", field): path})  # the path tells which of several
        return {field if untagged(value) == value else f"{field}.rows": path}  # the tags in a name stay an option

    def dataset(self, value: Any) -> str | None:
        """See `rlhf.stage.fields.RowsCheck`."""
        return repository_of(value)


DataSource = Annotated[str, LocalOrHub()]
DataSources = DataSource | tuple[DataSource, ...]  # one name needs no list
