"""The margin that the ranking loss asks for, by strength of the preference. Light: no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlhf.errors import InputError

MARGINS: dict[str, dict[str, float]] = {
    "none": {"significantly": 0.0, "better": 0.0, "slightly": 0.0, "negligibly": 0.0},
    "small": {"significantly": 1.0, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0},
    "large": {"significantly": 3.0, "better": 2.0, "slightly": 1.0, "negligibly": 0.0},
}
"""Llama 2 paper, table 27; "none" is the loss of its equation 1. Which is the default: decision 18."""


def margin_table(margin: str | Mapping[str, float]) -> dict[str | None, float]:
    """Margin by strength; a pair of unknown strength (None) has none.

    Args:
        margin: "none", "small", "large", or a figure of 0 or above for each of the four strengths.

    Raises:
        InputError: another name; a strength missing, unknown, or with a figure that is negative or not finite.
    """
    strengths = tuple(MARGINS["none"])
    if isinstance(margin, str):
        if margin not in MARGINS:
            names = f"{', '.join(MARGINS)} or a figure for each strength"
            raise InputError(f"margin: must be one of {names}, got {margin!r}")
        margin = MARGINS[margin]
    for strength in (*strengths, *margin):
        if strength not in strengths:
            raise InputError(f"margin: {strength!r} is no strength; they are {', '.join(strengths)}")
        if strength not in margin:
            raise InputError(f"margin: lacks a figure for {strength!r}; a table of your own has one for each strength")
        if not 0 <= margin[strength] < math.inf:
            raise InputError(f"margin: of {strength!r} must be 0 or above, got {margin[strength]}")
    return {strength: margin[strength] for strength in strengths} | {None: 0.0}
