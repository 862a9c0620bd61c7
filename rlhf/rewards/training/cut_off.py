"""Whether a reward function likes answers that are cut off, which it has seldom read. Light."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

from rlhf.data.rows import Preference
from rlhf.intervals import mean_interval
from rlhf.rewards.protocol import RewardFunction

CUT_OFF_PAIRS, FEWEST_WORDS = 100, 12
_SENTENCE_END = re.compile(r"(?<!\d)[.!?…؟।][\"'”’)\]*_]*\s|[。！？]")
"""A mark that ends a sentence, and not the number of a list's item."""

_GOES_ON = ",;:-–—、，؛"


class CutOffFigures(TypedDict):
    """Mean change of a chosen answer's score when it is cut off, with its 95 % interval; None without such answers.

    Above 0, a policy is paid for answers that do not come to their end.
    """

    cut_off_gain: float | None
    cut_off_ci: list[float] | None


def cut_off_figures(
    reward: RewardFunction, preferences: Sequence[Preference], chosen: Sequence[float]
) -> CutOffFigures:
    """By how much the score of a chosen answer rises when its last third is cut off, in the middle of a sentence.

    Of the first CUT_OFF_PAIRS answers that have FEWEST_WORDS and end as a sentence does.

    Args:
        chosen: what the reward function gave the chosen answers, whole.
    """
    from rlhf.rewards.scoring import check_scores, name_of

    whole = [
        (row, score)
        for row, score in zip(preferences, chosen, strict=True)
        if len(row.chosen.split()) >= FEWEST_WORDS and not breaks_off(row.chosen)
    ][:CUT_OFF_PAIRS]
    conversations = [replace(row, chosen=cut_off(row.chosen)).conversation("chosen") for row, _ in whole]
    scores = check_scores(reward(conversations), len(whole), name_of(reward)).tolist() if whole else []
    gain = mean_interval([cut - score for cut, (_, score) in zip(scores, whole, strict=True)])
    return {"cut_off_gain": None if gain is None else gain.mean, "cut_off_ci": None if gain is None else gain.ci}


def suspicious_cut_off(figures: CutOffFigures) -> list[str]:
    """A sentence where the gain is above 0 by its interval."""
    if figures["cut_off_ci"] is None or figures["cut_off_ci"][0] <= 0:
        return []
    return [
        f"an answer that is cut off in the middle of a sentence scores {figures['cut_off_gain']:.2f} more than the "
        "whole one; let no policy be paid for that (ppo.unfinished_score: neutral)"
    ]


def breaks_off(text: str) -> bool:
    """Whether a text that has ended a sentence before ends in the middle of one: in a letter, a digit or a comma.

    An answer of a single word or line is none that breaks off; a list whose last item has no mark may look like one.
    """
    text = text.rstrip()
    return bool(text) and (text[-1].isalnum() or text[-1] in _GOES_ON) and bool(_SENTENCE_END.search(text))


def cut_off(text: str, share: float = 2 / 3) -> str:
    """The first `share` of a text's words, without the mark that the last of them may end in."""
    words = text.split(" ")
    return " ".join(words[: max(1, int(len(words) * share))]).rstrip(" \n.!?…؟।。！？\"'”’)]*_")
