"""What looks wrong about the rows that a stage made and chose itself: pure rules, each with its threshold. Light."""

from __future__ import annotations

from collections.abc import Mapping

MOST_CUT_OFF = 0.3
"""Share of the answers drawn that did not end: beyond it the length limit decides what is chosen, not the reward."""

FEWEST_USED = 0.5
"""Share of the rows there could be: below it those that are left may not be like those that were asked for."""


def suspicious_answers(finished_share: float, limit: str = "sampling.max_new_tokens") -> list[str]:
    """A sentence where many of the drawn answers were cut off at the option `limit`."""
    if finished_share >= 1 - MOST_CUT_OFF:
        return []
    return [f"{1 - finished_share:.0%} of the answers are cut off; raise {limit}"]


def suspicious_selection(rows: int, possible: int, left_out: Mapping[str, int]) -> list[str]:
    """A sentence where far fewer rows are left to train on than there could be, one of each prompt or dialogue."""
    if rows >= FEWEST_USED * possible:
        return []
    why = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return [f"only {rows} of {possible} are left to train on" + (f" ({why})" if why else "")]
