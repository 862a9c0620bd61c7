"""What looks wrong about how a stage's reward functions scored. Light: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.data.suspicion import suspicious_cuts


def counts_of(functions: Sequence[object]) -> list[tuple[int, int]]:
    """(scored, cut) of each reward function: conversations that it scored here so far, and those cut to its context.

    (0, 0) of one that has no such limit, or whose attributes of these names are something else, as those of a user's
    own may be.
    """
    found = [(getattr(function, "scored", 0), getattr(function, "cut", 0)) for function in functions]
    return [counts if all(type(count) is int for count in counts) else (0, 0) for counts in found]


def count_again(functions: Sequence[object], counts: Sequence[tuple[int, int]]) -> None:
    """Add what an earlier attempt scored, as `counts_of` has it, so that `suspicious_scoring` says it again."""
    for function, (scored, cut) in zip(functions, counts, strict=True):
        if scored:
            vars(function)["scored"] += scored
            vars(function)["cut"] += cut


def suspicious_scoring(**functions: object) -> list[str]:
    """A sentence for each reward function, by its option's name, that had to cut most of what it scored so far.

    What this process scored counts. Only functions that read by a tokenizer's context know (`scored`, `cut`).
    """
    counts = zip(functions, counts_of(list(functions.values())), strict=True)
    return suspicious_cuts({name: cut / scored for name, (scored, cut) in counts if scored})
