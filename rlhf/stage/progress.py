"""The bar over work that may take long."""

from __future__ import annotations

import os

from tqdm import tqdm

SECONDS_UNSEEN = 5.0
"""Work that is done by then shows no bar."""


def progress_bar(total: int, what: str, unit: str) -> tqdm:
    """Shown on one process a machine while it runs, and gone afterwards; `update(n)` counts."""
    quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    return tqdm(total=total, desc=what, unit=unit, disable=quiet, delay=SECONDS_UNSEEN, mininterval=1.0, leave=False)
