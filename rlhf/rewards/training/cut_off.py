"""Answers that are cut off: whether a reward function likes them, and pairs that teach it not to. Light."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from rlhf.conversation import Conversation, Renderer, split_thoughts, with_thoughts
from rlhf.data.cores import chunks_of
from rlhf.data.rows import Preference
from rlhf.errors import notice
from rlhf.intervals import mean_interval
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.training.pairs import Pair

if TYPE_CHECKING:
    from rlhf.rewards.training.table import PairTable

CUT_OFF_PAIRS, FEWEST_WORDS = 100, 12
SHORTEST_CUT, LONGEST_CUT = 1 / 4, 9 / 10
_SENTENCE_END = re.compile(r"(?<!\d)[.!?…؟।][\"'”’)\]*_]*\s|[。！？]")
"""A mark that ends a sentence, and not the number of a list's item."""

_GOES_ON = ",;:-–—、，؛"
_MARKS = " \n.!?…؟।。！？\"'”’)]*_"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which put no spaces between words."""

_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_CHUNK = 2000


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

    It stands there without its end token, as a length limit leaves a sampled answer. Of CUT_OFF_PAIRS answers that have
    FEWEST_WORDS and end as a sentence does, evenly spread over all of these. What was thought before an answer is left
    whole.

    Args:
        chosen: what the reward function gave the chosen answers, whole.
    """
    from rlhf.rewards.scoring import check_scores, name_of

    found = [
        (row, score) for row, score in zip(preferences, chosen, strict=True) if _is_whole(split_thoughts(row.chosen)[1])
    ]
    count = min(CUT_OFF_PAIRS, len(found))
    whole = [found[number * len(found) // count] for number in range(count)]
    answers = [split_thoughts(row.chosen) for row, _ in whole]
    conversations = [
        _unfinished(replace(row, chosen=with_thoughts(thoughts, cut_off(answer))).conversation("chosen"))
        for (row, _), (thoughts, answer) in zip(whole, answers, strict=True)
    ]
    scores = check_scores(reward(conversations), len(whole), name_of(reward)).tolist() if whole else []
    gain = mean_interval([cut - score for cut, (_, score) in zip(scores, whole, strict=True)])
    return {"cut_off_gain": None if gain is None else gain.mean, "cut_off_ci": None if gain is None else gain.ci}


def cut_off_pairs(pairs: PairTable, share: float, renderer: Renderer, seed: int) -> Iterator[list[Pair]]:
    """Further pairs to train on, some at a time: a chosen answer, and itself cut off in the middle of a sentence.

    The cut one keeps between a quarter and nine tenths of the words, and every other one stands there without its end
    token, as an answer that a length limit cut off does. It has no safety label, and the pair no strength. Ours, not
    the paper's (decision 64).

    Args:
        pairs: those to train on; an answer of theirs is used where it has FEWEST_WORDS and comes to its end.
        share: how many are made, as a share of `pairs`; all that can be where those are fewer, and stderr says so.
        renderer: that of `pairs`.
        seed: of which are used, and where they are cut.
    """
    count, made = max(1, round(len(pairs) * share)) if share else 0, 0
    generator = random.Random(f"cut off/{seed}")
    order = generator.sample(range(len(pairs)), len(pairs)) if count else []
    whole = (pair for pair in (pairs[number] for number in order) if _is_whole(pair.preference.chosen))
    for chunk in chunks_of((pair for _, pair in zip(range(count), whole, strict=False)), _CHUNK):
        rows = [
            replace(
                pair.preference,
                rejected=cut_off(pair.preference.chosen, generator.uniform(SHORTEST_CUT, LONGEST_CUT)),
                strength=None,
                rejected_safe=None,
            )
            for pair in chunk
        ]
        sides = [row.conversation("rejected") for row in rows]
        sides = [side if number % 2 else _unfinished(side) for number, side in enumerate(sides, made)]
        made += len(chunk)
        yield [
            replace(pair, preference=row, rejected=cut.input_ids)
            for pair, row, cut in zip(chunk, rows, renderer.dialogues(sides), strict=True)
        ]
    if made < count:
        notice(f"cut_off_share: {share:g} asks for {count} pairs; {made} chosen answers are long enough and whole")


def suspicious_cut_off(figures: CutOffFigures) -> list[str]:
    """A sentence where the gain is above 0 by its interval."""
    if figures["cut_off_ci"] is None or figures["cut_off_ci"][0] <= 0:
        return []
    return [
        f"an answer that is cut off in the middle of a sentence scores {figures['cut_off_gain']:.2f} more than the "
        "whole one; teach it otherwise by a higher cut_off_share, or let no policy be paid for that "
        "(ppo.unfinished_score: neutral)"
    ]


def _unfinished(dialogue: Conversation) -> Conversation:
    return [*dialogue[:-1], {**dialogue[-1], "finished": False}]


def _is_whole(answer: str) -> bool:
    return len(_WORD.findall(answer)) >= FEWEST_WORDS and not breaks_off(answer)


def breaks_off(text: str) -> bool:
    """Whether a text that has ended a sentence before ends in the middle of one: in a letter, a digit or a comma.

    An answer of a single word or line is none that breaks off; a list whose last item has no mark may look like one.
    """
    text = text.rstrip()
    return bool(text) and (text[-1].isalnum() or text[-1] in _GOES_ON) and bool(_SENTENCE_END.search(text))


def cut_off(text: str, share: float = 2 / 3) -> str:
    """The first `share` of a text's words, without the mark that the last of them may end in.

    A letter of a script that has no spaces is a word. Of what begins with nothing but marks, these are left.
    """
    ends = [word.end() for word in _WORD.finditer(text)]
    first = text[: ends[max(1, int(len(ends) * share)) - 1]] if ends else text
    return first.rstrip(_MARKS) or first
