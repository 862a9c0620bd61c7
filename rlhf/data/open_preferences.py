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
row is an InputError. Where the scores have a scale, their difference gives the strength (`rlhf.data.layouts.pairing`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from rlhf.data.layouts.conversations import question_of
from rlhf.data.layouts.declaration import Format, Row, asked_under, is_empty, named, names_with_value, user
from rlhf.data.layouts.pairing import LEAVE_OUT, flag_in, flag_of, number_of, ranked_pairs, strength_of
from rlhf.data.layouts.pairing import MAX_PAIRS as MAX_PAIRS
from rlhf.data.layouts.preferences import chosen_and_rejected
from rlhf.data.markup import text_of_html
from rlhf.data.rows import Domain
from rlhf.errors import InputError, quoted

Pairs = list[dict[str, Any]]
_SCORES = ("score_chosen", "score_rejected")
_RATINGS = ("chosen-rating", "rejected-rating")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def is_open_preference(row: Row) -> bool:
    """Whether the row has the fields of one of the sets above."""
    return any(one.recognises(row, names_with_value(row)) for one in OPEN_FORMATS)


def _shp(row: Row, domain: Domain | None) -> Pairs:
    answers = (row["human_ref_B"], row["human_ref_A"])
    return [_pair(row["history"], answers, _index(row, "labels"))]


def _pku(row: Row, domain: Domain | None) -> Pairs:
    chosen = _index(row, "safer_response_id" if domain == "safety" else "better_response_id")
    labels = [flag_in(row.get(f"is_response_{i}_safe")) for i in (0, 1)]
    pair = _pair(row.get("prompt"), (row["response_0"], row["response_1"]), chosen)
    return [{**pair, "chosen_safe": labels[chosen], "rejected_safe": labels[1 - chosen]}]


def _to_summarize(row: Row) -> str:
    info = row["info"]
    names = ("subreddit", "title", "post") if info.get("post") else ("article",)
    for name in names:
        if not isinstance(info.get(name), str):
            raise InputError(f"info.{name}: must be a text, got {quoted(info.get(name))}")
    if info.get("post"):
        return f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}\n\nTL;DR:"
    return f"Article:\n{info['article']}\n\nTL;DR:"


def _summarize(row: Row, domain: Domain | None) -> Pairs:
    return [_pair(_to_summarize(row), [summary["text"].strip() for summary in row["summaries"]], _index(row, "choice"))]


def _webgpt(row: Row, domain: Domain | None) -> Pairs:
    answers = [(row[f"answer_{i}"], row[f"score_{i}"]) for i in (0, 1)]
    return ranked_pairs(row["question"].get("full_text"), answers, "score_0, score_1", width=2)


def _stack_exchange(row: Row, domain: Domain | None) -> Pairs:
    answers = [(text_of_html(answer["text"]), answer["pm_score"]) for answer in row["answers"]]
    return ranked_pairs(text_of_html(row["question"]), answers, "pm_score", width=None)


def _ultrafeedback(row: Row, domain: Domain | None) -> Pairs:
    """By the mean of the aspects' ratings (1 to 5): `overall_score` (1 to 10) has false tens in older revisions."""
    completions = row["completions"]
    ratings = [_mean_rating(completion) for completion in completions]
    by_aspect = None not in ratings
    scores = ratings if by_aspect else [completion.get("overall_score") for completion in completions]
    answers = [(completion["response"], score) for completion, score in zip(completions, scores, strict=True)]
    return ranked_pairs(row["instruction"], answers, "completions", width=4 if by_aspect else 9)


def _mean_rating(completion: Row) -> float | None:
    given = [(aspect or {}).get("Rating") for aspect in (completion.get("annotations") or {}).values()]
    ratings = [number_of("Rating", rating) for rating in given if not is_empty(rating) and rating != "N/A"]
    return sum(ratings) / len(ratings) if ratings else None


def _binarized(fields: tuple[str, str], width: float, row: Row, domain: Domain | None) -> Pairs:
    chosen, rejected = (number_of(field, row[field]) for field in fields)
    if chosen <= rejected:
        raise InputError(f"{fields[0]}: must be above {fields[1]}, got {chosen} and {rejected}; {LEAVE_OUT}")
    pair = {name: row[name] for name in ("prompt", "chosen", "rejected") if name in row}
    return [{**pair, "strength": strength_of(chosen - rejected, width)}]


def _helpsteer(rows: Sequence[Row], domain: Domain | None) -> Pairs:
    answers = [(rated["response"], rated["helpfulness"]) for rated in rows]
    return ranked_pairs(_turns(rows[0]["prompt"]), answers, "helpfulness", width=4)


def _helpsteer_preference(row: Row, domain: Domain | None) -> Pairs:
    answers = [(row["response_1"], 0), (row["response_2"], row["preference_strength"])]
    return ranked_pairs(_turns(row["prompt"]), answers, "preference_strength", width=4)


def _turns(prompt: str) -> list[dict[str, Any]]:
    """HelpSteer's prompt, which may hold several turns with marks between them, as messages."""
    parts = _HELPSTEER_TURN.split(prompt)
    roles = ["user", *(speaker.lower() for speaker in parts[1::2])]
    return [{"role": role, "content": content} for role, content in zip(roles, parts[::2], strict=True)]


def _pair(prompt: Any, answers: Sequence[Any], chosen: int) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": answers[chosen], "rejected": answers[1 - chosen]}


def _index(row: Row, field: str) -> int:
    value = flag_of(row.get(field))
    if value is None:
        raise InputError(f"{field}: must be 0 or 1, got {quoted(row.get(field))}")
    return int(value)


def _of_answers(*names: str) -> frozenset[str]:
    """These fields of each of two answers: name_0 and name_1, or with the number in their middle."""
    return frozenset(name.replace("#", str(i)) for name in names for i in (0, 1))


def _binarized_format(fields: tuple[str, str], width: float, *harmless: str) -> Format:
    return chosen_and_rejected(
        ("chosen", "rejected", *fields),
        "UltraFeedback, binarized",
        harmless=frozenset({"source", *harmless}),
        pairs=partial(_binarized, fields, width),
    )


OPEN_FORMATS = (
    Format(
        name="SHP",
        needs=frozenset({"history", "human_ref_A", "human_ref_B", "labels"}),
        harmless=named(
            "domain post_id upvote_ratio c_root_id_A c_root_id_B created_at_utc_A created_at_utc_B score_A "
            "score_B seconds_difference score_ratio"
        ),
        pairs=_shp,
        prompt=lambda row: [user(row["history"])],
    ),
    Format(
        name="PKU-SafeRLHF",
        needs=frozenset({"response_0", "response_1"}),
        reads=frozenset({"prompt", "better_response_id", "safer_response_id"}) | _of_answers("is_response_#_safe"),
        harmless=frozenset({"prompt_source", "prompt_sha256"})
        | _of_answers(
            "response_#_source", "response_#_harm_category", "response_#_severity_level", "response_#_sha256"
        ),
        pairs=_pku,
        prompt=lambda row: question_of(row["prompt"]),
    ),
    Format(
        name="OpenAI Summarize",
        needs=frozenset({"info", "summaries", "choice"}),
        harmless=frozenset({"worker", "batch", "extra"}),
        pairs=_summarize,
        prompt=lambda row: [user(_to_summarize(row))],
    ),
    Format(
        name="WebGPT",
        needs=frozenset({"question", "answer_0", "answer_1", "score_0", "score_1"}),
        harmless=_of_answers("quotes_#", "tokens_#"),
        pairs=_webgpt,
        prompt=lambda row: [user(row["question"].get("full_text"))],
    ),
    Format(
        name="StackExchange",
        needs=frozenset({"question", "answers"}),
        harmless=frozenset({"qid", "metadata", "date"}),
        pairs=_stack_exchange,
        prompt=lambda row: [user(text_of_html(row["question"]))],
    ),
    Format(
        name="UltraFeedback",
        needs=frozenset({"instruction", "completions"}),
        harmless=named("source correct_answers incorrect_answers"),
        pairs=_ultrafeedback,
        prompt=lambda row: [user(row["instruction"])],
    ),
    _binarized_format(_SCORES, 9),
    _binarized_format(_RATINGS, 4, "chosen-model", "rejected-model"),
    Format(
        name="HelpSteer",
        needs=frozenset({"prompt", "response", "helpfulness"}),
        harmless=frozenset({"correctness", "coherence", "complexity", "verbosity"}),
        pairs=_helpsteer,
        prompt=lambda rows: _turns(rows[0]["prompt"]),
        together=lambda row: str([row["prompt"], *asked_under(row)]),
        joined=frozenset({"preferences", "prompts"}),
        anywhere=False,
    ),
    Format(
        name="HelpSteer2 preferences",
        needs=frozenset({"prompt", "response_1", "response_2", "preference_strength"}),
        harmless=named(
            "preference_statement preference_elaboration three_most_similar_preferences all_preferences_unprocessed"
        ),
        pairs=_helpsteer_preference,
        prompt=lambda row: _turns(row["prompt"]),
    ),
)
