"""What looks wrong about the rows that a stage made and chose itself: pure rules, each with its threshold. Light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MOST_CUT_OFF = 0.3
"""Share of the answers drawn that did not end: beyond it the length limit decides what is chosen, not the reward."""

FEWEST_USED = 0.5
"""Share of the rows there could be: below it those that are left may not be like those that were asked for."""

MOST_CUT = 0.3
"""Share of the dialogues that a reward model scored cut to its context: beyond it, it judges what it has not read."""

MOST_UNREADABLE = 0.1
"""Share of a judge model's judgements that cannot be read: beyond it the rest may be of other pairs than these."""

MOST_BY_ORDER = 0.5
"""Share of a judge model's pairs that the order of the answers decides: beyond it, it says little of the answers."""

START = "start"
"""Name of the chat model that a run was given, among the policies that it measures."""

NO_ROOM = "leave long prompts out, or name a model of a longer context"
"""The way out where a context ends answers: a higher limit on their length would change nothing."""


def no_room_share(answers: Iterable[tuple[bool, int]], max_new_tokens: int) -> float:
    """Share of answers that a model's context ended: they did not end themselves, and are shorter than they may be.

    Args:
        answers: of each, whether it came to its end, and its tokens.
    """
    found = [not finished and tokens < max_new_tokens for finished, tokens in answers]
    return sum(found) / len(found) if found else 0.0


def suspicious_answers(
    finished_share: float, limit: str = "sampling.max_new_tokens", no_room: float = 0.0, whose: str = "the answers"
) -> list[str]:
    """Sentences where many of the drawn answers did not come to their end.

    Args:
        limit: the option at which they are cut off.
        no_room: `no_room_share`, part of those that did not end.
        whose: they are, in words.
    """
    if finished_share >= 1 - MOST_CUT_OFF:
        return []
    cut_off = 1 - finished_share - no_room
    found = [f"{cut_off:.0%} of {whose} are cut off; raise {limit}"] if round(cut_off, 9) > 0 else []
    return found + ([f"{no_room:.0%} of {whose} end where a context does; {NO_ROOM}"] if no_room else [])


def suspicious_ends(
    finished: Iterable[bool], limit: str = "sampling.max_new_tokens", whose: str = "the answers"
) -> list[str]:
    """`suspicious_answers` of answers, each known to have come to its end or not; silent where there are none."""
    ended = list(finished)
    return suspicious_answers(sum(ended) / len(ended), limit, whose=whose) if ended else []


def measured_answers(policy: str) -> str:
    """The answers of a policy that is measured, in words: those of the start are no fault of the run's."""
    return "the start's own answers (no training has touched it)" if policy == START else "the answers"


def suspicious_cuts(shares: Mapping[str, float]) -> list[str]:
    """A sentence for each reward model that could not read most of what it scored.

    Args:
        shares: the model, as its option is called -> share of its dialogues that were cut to its context.
    """
    return [
        f"{name} scored {share:.0%} of its dialogues cut to its context; {NO_ROOM}"
        for name, share in shares.items()
        if share > MOST_CUT
    ]


def suspicious_judge(model: str, counts: Mapping[str, int]) -> list[str]:
    """Sentences where many of a judge model's judgements cannot be used.

    Args:
        counts: `rlhf.rewards.pair_judge.judge_counts`; "pairs" and "unreadable" alone will do.
    """
    pairs, found = counts["pairs"], []
    if counts["unreadable"] > MOST_UNREADABLE * pairs:
        share = counts["unreadable"] / pairs
        found.append(f"{share:.0%} of {model}'s judgements cannot be read, or were refused; name a stronger judge")
    if counts.get("order_decides", 0) > MOST_BY_ORDER * pairs:
        share = counts["order_decides"] / pairs
        found.append(f"{model} leaves {share:.0%} of the pairs to the order of the answers; name a stronger judge")
    return found


def suspicious_agreement(agreement: float, highest: float, most_frequent: float) -> list[str]:
    """A sentence where a judge agrees less with people than always saying their most frequent label would.

    Args:
        agreement: share of the held-out texts.
        highest: upper end of its 95 % interval, which must lie below the other share.
        most_frequent: share of the texts that have the most frequent label.
    """
    if highest >= most_frequent:
        return []
    return [
        f"always saying the most frequent label does better ({most_frequent:.1%}) than its agreement with people, "
        f"{agreement:.1%}"
    ]


def suspicious_selection(rows: int, possible: int, left_out: Mapping[str, int]) -> list[str]:
    """A sentence where far fewer rows are left to train on than there could be, one of each prompt or dialogue."""
    if rows >= FEWEST_USED * possible:
        return []
    why = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return [f"only {rows} of {possible} are left to train on" + (f" ({why})" if why else "")]
