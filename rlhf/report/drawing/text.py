"""How numbers and names read on the page."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"
MINUS = "−"
NBSP = "\u00a0"


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many digits after the point, with a true minus; a dash for None."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return text[1:] if text.strip("-0.") == "" and text.startswith("-") else text.replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """The same with a plus sign where it is above 0."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return NOTHING if value is None else f"{number(100 * value, digits)}{NBSP}%"


def interval(ci: Sequence[float] | None, digits: int = 3, *, share: bool = False) -> str:
    """[low, high] as "low to high", empty for None; of a share in per cent, without the sign."""
    if ci is None:
        return ""
    factor = 100 if share else 1
    return " to ".join(number(factor * end, digits) for end in ci)


def chance(ci: Sequence[float] | None, of: float) -> str:
    """What is said behind a figure whose interval holds `of`, where nothing has changed: that it may be chance."""
    return ", which may be chance" if ci is not None and ci[0] <= of <= ci[1] else ""


def clock(seconds: float | None) -> str:
    """Seconds as 4.2 s, 3 min 07 s, or 2 h 05 min."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(mb: float | None) -> str:
    """MiB as MiB, from 10 GiB on as GiB."""
    if mb is None:
        return NOTHING
    return f"{mb:.0f} MiB" if mb < 10240 else f"{mb / 1024:.1f} GiB"


def first_label(names: Sequence[str]) -> str:
    """What the versions of a run are compared with: SFT, or the chat model that the run was given."""
    return "SFT" if names and names[0] == "sft" else "the start"


STEPS = {
    "sft": "+ SFT",
    "safety_sft": "+ safety SFT",
    "dpo": "+ DPO",
    "ppo": "+ PPO",
    "gatt": "+ GAtt",
    "time": "+ time awareness",
    "average": "averaged",
    "distilled": "distilled",
}
"""What a step has made of a version, as the policy's name says it behind the version's."""


def version_label(name: str) -> str:
    """sft, v1, v3_ppo, v1_average as SFT, V1, V3 + PPO, V1 averaged; a branch v1_random as V1 (random).

    What stands behind a comma stays, and other names do.
    """
    name, comma, place = name.partition(",")
    first, _, rest = name.partition("_")
    if name == "sft":
        name = "SFT"
    elif first[:1] == "v" and first[1:].isdigit():
        name = f"{first.upper()} {STEPS.get(rest, f'({rest})')}" if rest else first.upper()
    return name + comma + place


def student_label(name: str) -> str:
    """v5_small as student small of V5; small as student small, as given."""
    first, _, rest = name.partition("_")
    made = rest and version_label(first) != first
    return f"student {rest} of {version_label(first)}" if made else f"student {name}, as given"


def in_a_sentence(name: str) -> str:
    """`version_label`, and "the start" for the chat model that a run was given."""
    return "the start" if name == "start" else version_label(name)
