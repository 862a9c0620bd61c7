"""The open-source preference sets that the paper names (section 3.2.1) and two later ones, as plain preference rows.

A row is recognised by its fields, as each set is published:

    Stanford SHP                history, human_ref_A, human_ref_B, labels (1: A is preferred)
    PKU-SafeRLHF                response_0, response_1, better_response_id, safer_response_id, is_response_0_safe, …
    OpenAI Summarize            info, summaries, choice (the comparisons, not the axis ratings)
    OpenAI WebGPT               question, answer_0, answer_1, score_0, score_1
    StackExchange               question, answers with text (HTML) and pm_score
    UltraFeedback               instruction, completions with response, annotations and overall_score
    UltraFeedback, binarized    chosen, rejected, and score_chosen, score_rejected or chosen-rating, rejected-rating
    HelpSteer, HelpSteer2       prompt, response, helpfulness; successive rows of one prompt are compared
    HelpSteer2 preferences      prompt, response_1, response_2, preference_strength (positive: the second is better)

Several scored answers of one prompt make every pair whose scores differ, at most MAX_PAIRS of them; where none do, the
row is an InputError. Where the scores have a scale, their difference gives the strength (`strength_of`).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, groupby
from typing import Any

from rlhf.data.markup import text_of_html
from rlhf.data.rows import Domain, Strength
from rlhf.errors import InputError

Row = Mapping[str, Any]

MAX_PAIRS = 10
SHARES: tuple[tuple[float, Strength], ...] = (
    (0.75, "significantly"),
    (0.5, "better"),
    (0.25, "slightly"),
    (0.0, "negligibly"),
)
_RATED = frozenset({"prompt", "response", "helpfulness"})
_SCORES = ("score_chosen", "score_rejected")
_RATINGS = ("chosen-rating", "rejected-rating")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def strength_of(difference: float, width: float) -> Strength:
    """How much better an answer is whose score is higher by `difference` > 0 on a scale from lowest to highest `width`.

    By their share: from 3/4 on significantly, from 1/2 better, from 1/4 slightly, below negligibly. So on HelpSteer's
    helpfulness (0 to 4) one point is slightly, two are better, three or four significantly. The table is ours.
    """
    return next(strength for share, strength in SHARES if difference >= share * width)


def is_open_preference(row: Row) -> bool:
    """Whether the row has the fields of one of the sets above."""
    return _format(row) is not None or row.keys() >= _RATED


def successive(rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """(number, row) as they come, but HelpSteer's successive rows of one prompt as one, under the first one's number.

    Its fields are the prompt and `rated`, the list of those rows.
    """
    for _, group in groupby(rows, key=lambda item: item[1]["prompt"] if item[1].keys() >= _RATED else item[0]):
        number, first = next(group)
        if first.keys() >= _RATED:
            yield number, {"prompt": first["prompt"], "rated": [first, *(row for _, row in group)]}
        else:
            yield number, first


def comparisons_of(row: Row, domain: Domain | None) -> list[Row]:
    """The row's pairs as plain rows (`rlhf.data.formats.preference_of` takes them), or [row] of any other format.

    Args:
        row: one that `successive` gave.
        domain: PKU-SafeRLHF holds two comparisons: "safety" takes the safer response, else the better one is taken.

    Raises:
        InputError: a label is missing or unknown, a score is no number, or no two answers differ in score.
    """
    recognised = _format(row)
    if recognised is None:
        return [row]
    name, convert = recognised
    try:
        return convert(row, domain)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"row: has the fields of {name}, but not its inner structure, got {error!r}") from error


def _shp(row: Row, domain: Domain | None) -> list[Row]:
    answers = (row["human_ref_B"], row["human_ref_A"])
    return [_pair(row["history"], answers, _index(row, "labels"))]


def _pku(row: Row, domain: Domain | None) -> list[Row]:
    chosen = _index(row, "safer_response_id" if domain == "safety" else "better_response_id")
    labels = [row.get(f"is_response_{i}_safe") for i in (0, 1)]
    pair = _pair(row.get("prompt"), (row["response_0"], row["response_1"]), chosen)
    return [{**pair, "chosen_safe": labels[chosen], "rejected_safe": labels[1 - chosen]}]


def _summarize(row: Row, domain: Domain | None) -> list[Row]:
    info = row["info"]
    if info.get("post"):
        prompt = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}\n\nTL;DR:"
    else:
        prompt = f"Article:\n{info.get('article')}\n\nTL;DR:"
    return [_pair(prompt, [summary["text"].strip() for summary in row["summaries"]], _index(row, "choice"))]


def _webgpt(row: Row, domain: Domain | None) -> list[Row]:
    answers = [(row[f"answer_{i}"], row[f"score_{i}"]) for i in (0, 1)]
    return ranked_pairs(row["question"].get("full_text"), answers, "score_0, score_1", width=2)


def _stack_exchange(row: Row, domain: Domain | None) -> list[Row]:
    answers = [(text_of_html(answer["text"]), answer["pm_score"]) for answer in row["answers"]]
    return ranked_pairs(text_of_html(row["question"]), answers, "pm_score", width=None)


def _ultrafeedback(row: Row, domain: Domain | None) -> list[Row]:
    """By the mean of the aspects' ratings (1 to 5): `overall_score` (1 to 10) has false tens in older revisions."""
    completions = row["completions"]
    ratings = [_mean_rating(completion) for completion in completions]
    by_aspect = None not in ratings
    scores = ratings if by_aspect else [completion.get("overall_score") for completion in completions]
    answers = [(completion["response"], score) for completion, score in zip(completions, scores, strict=True)]
    return ranked_pairs(row["instruction"], answers, "completions", width=4 if by_aspect else 9)


def _mean_rating(completion: Row) -> float | None:
    texts = [str(aspect.get("Rating")) for aspect in (completion.get("annotations") or {}).values()]
    ratings = [int(text) for text in texts if text.isdigit()]
    return sum(ratings) / len(ratings) if ratings else None


def _binarized(fields: tuple[str, str], width: float, row: Row, domain: Domain | None) -> list[Row]:
    chosen, rejected = (_number(field, row[field]) for field in fields)
    if chosen <= rejected:
        raise InputError(f"{fields[0]}: must be above {fields[1]}, got {chosen} and {rejected}")
    pair = {name: row[name] for name in ("prompt", "chosen", "rejected") if name in row}
    return [{**pair, "strength": strength_of(chosen - rejected, width)}]


def _helpsteer(row: Row, domain: Domain | None) -> list[Row]:
    answers = [(rated["response"], rated["helpfulness"]) for rated in row["rated"]]
    return ranked_pairs(_turns(row["prompt"]), answers, "helpfulness", width=4)


def _helpsteer_preference(row: Row, domain: Domain | None) -> list[Row]:
    answers = [(row["response_1"], 0), (row["response_2"], row["preference_strength"])]
    return ranked_pairs(_turns(row["prompt"]), answers, "preference_strength", width=4)


Converter = Callable[[Row, Domain | None], list[Row]]
_FORMATS: tuple[tuple[str, frozenset[str], Converter], ...] = (
    ("SHP", frozenset({"history", "human_ref_A", "human_ref_B", "labels"}), _shp),
    ("PKU-SafeRLHF", frozenset({"response_0", "response_1"}), _pku),
    ("OpenAI Summarize", frozenset({"info", "summaries", "choice"}), _summarize),
    ("WebGPT", frozenset({"question", "answer_0", "answer_1", "score_0", "score_1"}), _webgpt),
    ("StackExchange", frozenset({"question", "answers"}), _stack_exchange),
    ("UltraFeedback", frozenset({"instruction", "completions"}), _ultrafeedback),
    ("UltraFeedback", frozenset({"chosen", "rejected", *_SCORES}), partial(_binarized, _SCORES, 9)),
    ("UltraFeedback", frozenset({"chosen", "rejected", *_RATINGS}), partial(_binarized, _RATINGS, 4)),
    ("HelpSteer", frozenset({"prompt", "rated"}), _helpsteer),
    ("HelpSteer2", frozenset({"prompt", "response_1", "response_2", "preference_strength"}), _helpsteer_preference),
)


def _format(row: Row) -> tuple[str, Converter] | None:
    return next(((name, convert) for name, fields, convert in _FORMATS if row.keys() >= fields), None)


def _pair(prompt: Any, answers: Sequence[Any], chosen: int) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": answers[chosen], "rejected": answers[1 - chosen]}


def ranked_pairs(prompt: Any, answers: Sequence[tuple[Any, Any]], field: str, width: float | None) -> list[Row]:
    """Pairs of (answer, score) whose scores differ, the higher chosen; above MAX_PAIRS so many are drawn by the prompt.

    With a strength where the scale's width is known.
    """
    scored = sorted(((answer, _number(field, score)) for answer, score in answers), key=lambda item: -item[1])
    pairs = [(one, other) for one, other in combinations(scored, 2) if one[1] > other[1]]
    if not pairs:
        raise InputError(f"{field}: no two answers differ in score, got {[score for _, score in scored]}")
    if len(pairs) > MAX_PAIRS:
        pairs = random.Random(str(prompt)).sample(pairs, MAX_PAIRS)
    strengths = [None if width is None else strength_of(one[1] - other[1], width) for one, other in pairs]
    return [
        {"prompt": prompt, "chosen": one[0], "rejected": other[0], "strength": strength}
        for (one, other), strength in zip(pairs, strengths, strict=True)
    ]


def _turns(prompt: str) -> list[dict[str, Any]]:
    """HelpSteer's prompt, which may hold several turns with marks between them, as messages."""
    parts = _HELPSTEER_TURN.split(prompt)
    roles = ["user", *(speaker.lower() for speaker in parts[1::2])]
    return [{"role": role, "content": content} for role, content in zip(roles, parts[::2], strict=True)]


def _index(row: Row, field: str) -> int:
    value = row.get(field)
    if value not in (0, 1):
        raise InputError(f"{field}: must be 0 or 1, got {value!r}")
    return int(value)


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{field}: must be a number, got {value!r}")
    return value
