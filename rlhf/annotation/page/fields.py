"""Fields of a request's JSON, checked: whatever does not fit is an InputError that names the field."""

from __future__ import annotations

from typing import Any

from rlhf.errors import InputError

LONGEST_NAME = 60


def name_of(value: Any) -> str:
    """An annotator's name."""
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or not value.isprintable():
        raise InputError(f"annotator: must be a name of at most {LONGEST_NAME} characters")
    return value.strip()


def number_of(body: dict[str, Any], field: str) -> int:
    """A number of the store's."""
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise InputError(f"{field}: must be a number, got {value!r}")
    return value


def seconds_of(body: dict[str, Any]) -> float:
    """How long the person's work took, to a hundredth."""
    seconds = body.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e7:
        raise InputError(f"seconds: must be a number of 0 or above, got {seconds!r}")
    return round(float(seconds), 2)
