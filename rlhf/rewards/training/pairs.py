"""Preference rows as pairs of token ids that fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf.conversation import Renderer, split_thoughts
from rlhf.data.rows import Preference
from rlhf.errors import InputError, notice
from rlhf.models.checkpoint.context import TooLongRow


@dataclass(frozen=True)
class Pair:
    """A preference and its two dialogues as ids. `cut`: its messages have lost their oldest turns."""

    preference: Preference
    chosen: list[int]
    rejected: list[int]
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens of the longer dialogue."""
        return max(len(self.chosen), len(self.rejected))


def render_pairs(
    preferences: Sequence[Preference],
    renderer: Renderer,
    max_length: int | None,
    too_long: TooLongRow = "cut",
    name: str = "preferences",
    *,
    thoughts: bool = False,
) -> list[Pair]:
    """Both dialogues of each row as ids of at most max_length.

    Whole oldest turns are dropped from BOTH sides until both fit: else the longer answer would be judged on less
    context than the shorter one. What does not fit with its last turn alone is left out, and said; so is what does not
    fit at all, or InputError names it, by `too_long`.

    Args:
        renderer: without a limit of its own.
        name: for messages.
        thoughts: what stands before an answer as `<think>…</think>` is a part of it: for a policy, not for a judge.
    """
    found = fit_pairs(preferences, renderer, max_length, too_long, name, thoughts=thoughts)
    say_skipped(len(preferences) - len(found), len(preferences), max_length, name)
    return list(found.values())


def fit_pairs(
    preferences: Sequence[Preference],
    renderer: Renderer,
    max_length: int | None,
    too_long: TooLongRow = "cut",
    name: str = "preferences",
    *,
    thoughts: bool = False,
) -> dict[int, Pair]:
    """`render_pairs` by the numbers of the rows, in their order; what is left out is missing, and nothing is said."""
    pairs: dict[int, Pair] = {}
    rows = preferences if thoughts else [_spoken(row) for row in preferences]
    left = dict(enumerate(rows))
    while left:
        sides = [row.conversation(which) for which in ("chosen", "rejected") for row in left.values()]
        rendered = renderer.dialogues(sides)  # at once: what stands in both is tokenized once
        longer: dict[int, Preference] = {}
        for (number, row), a, b in zip(left.items(), rendered[: len(left)], rendered[len(left) :], strict=True):
            pair = Pair(row, a.input_ids, b.input_ids, cut=row is not rows[number])
            if max_length is None or pair.length <= max_length:
                pairs[number] = pair
            elif too_long == "refuse":
                raise too_long_pair(row.id, pair.length, max_length, name)
            elif too_long == "cut" and (shorter := _without_oldest_turn(row)) is not None:
                longer[number] = shorter
        left = longer
    return {number: pairs[number] for number in sorted(pairs)}


def say_skipped(skipped: int, of: int, max_length: int | None, name: str) -> None:
    """How many pairs were too long, where any were."""
    if skipped:
        notice(f"{name}: skipped {skipped} of {of} pairs longer than {max_length} tokens")


def too_long_pair(row_id: str, length: int, max_length: int, name: str) -> InputError:
    """What is said of a pair that is too long where none may be."""
    return InputError(
        f"{name}: row {row_id} takes {length} tokens, above max_length {max_length}; raise it, or set "
        "too_long to cut or skip"
    )


def _spoken(row: Preference) -> Preference:
    """The row with its answers as their user reads them."""
    return replace(row, chosen=split_thoughts(row.chosen)[1], rejected=split_thoughts(row.rejected)[1])


def _without_oldest_turn(row: Preference) -> Preference | None:
    """The row without its first user's and assistant's messages; None where there is only one turn."""
    system = row.messages[:1] if row.messages[0]["role"] == "system" else []
    turns = row.messages[len(system) :]
    return replace(row, messages=[*system, *turns[2:]]) if len(turns) > 2 else None
