"""Every version's answers beside the first one's, by one judge: the shift of all, the worst of them, who wins where.

Scores by different versions' reward models do not compare, so one judge is what judged all of them alike: the scorer
that knows the truth, else the referee.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rlhf.annotation.human_evaluation import TURN_BINS, WORD_BINS, turns_of, words_of
from rlhf.intervals import mean_interval, wilson
from rlhf.report.drawing.distributions import ridges
from rlhf.report.drawing.figures import BLUE, GREY, ORANGE, Panel, Series, lines
from rlhf.report.drawing.text import chance, first_label, in_a_sentence, interval, percent, signed, version_label

Row = Mapping[str, Any]
Answers = Mapping[str, Sequence[Row]]
LOWEST = 10
"""The left tail is what lies in the lowest of so many parts of the first version's scores."""
LENGTH_BINS = ("shorter", "alike", "longer")
ALIKE = 1.25
"""An answer of up to so many times another's words is as long as it."""
OUTCOMES = (("win", BLUE), ("tie", GREY), ("loss", ORANGE))


def shift_panels(answers: Answers) -> list[Panel]:
    """Each version's scores beside the first one's, by one judge of all (paper, figure 20); the unit is the prompt."""
    if len(answers) < 2:
        return []
    judges: list[tuple[str, str, Callable[[Row], float | None]]] = [
        (
            "Gold helpfulness",
            "by the scorer that knows the truth, on ordinary and borderline prompts",
            lambda row: _gold(row, "helpfulness") if (row.get("gold") or {}).get("kind") != "unsafe" else None,
        ),
        (
            "Gold safety",
            "by the scorer that knows the truth, on prompts of the domain safety",
            lambda row: _gold(row, "safety") if row.get("domain") == "safety" else None,
        ),
        ("Referee's score", "by one reward model that has trained no version", lambda row: row.get("referee")),
    ]
    return [panel for title, how, value in judges if (panel := _shift(title, how, answers, value)) is not None]


def tail_panel(answers: Answers) -> Panel | None:
    """Safety's left tail: how many of a version's answers score as low as the first one's lowest tenth.

    Of safety prompts, by the version's own safety model, which scored both. The first version's share is a tenth by
    construction; the others' intervals take its bar as given. None where no version has ten such answers.
    """
    names = list(answers)
    shares: list[tuple[float, list[float] | None, int] | None] = []
    for name in names:
        pairs = [
            (before, row["safety"])
            for row in answers[name]
            if row.get("domain") == "safety"
            and row.get("index", 0) == 0
            and row.get("safety") is not None
            and (before := (row.get("sft") or {}).get("safety")) is not None
        ]
        shares.append(None if len(pairs) < LOWEST else _tail(pairs))
    known = [(name, share) for name, share in zip(names, shares, strict=True) if share is not None]
    if not known:
        return None
    last, (rate, ci, count) = known[-1]
    first = first_label(names)
    return lines(
        "Safety's left tail",
        [
            Series(
                "as low as its lowest tenth",
                ORANGE,
                range(len(names)),
                [None if share is None else share[0] for share in shares],
                [None if share is None else share[1] for share in shares],
            )
        ],
        names=[version_label(name) for name in names],
        percent=True,
        reference=1 / LOWEST,
        from_zero=True,
        note=f"Answers to safety prompts that score as low as the lowest tenth of {first}'s (dashed), by the version's "
        f"own safety model: {percent(rate)} ({interval(ci, 1, share=True)}{chance(ci, 1 / LOWEST)}) of {count} at "
        f"{version_label(last)}.",
    )


def outcome_panels(answers: Answers, judge: str | None) -> list[Panel]:
    """Win, tie and loss of the last version against the first: by turns, by the prompt's words, by how long it answers.

    Args:
        judge: of the outcomes, as evaluation.json names it: gold, or proxy.
    """
    if len(answers) < 2:
        return []
    rows = [row for row in answers[list(answers)[-1]] if row.get("outcome") is not None and row.get("index", 0) == 0]
    by = "by gold" if judge == "gold" else "by the reward models that trained it"
    groups: list[tuple[str, str, Sequence[str], Callable[[Row], str | None]]] = [
        ("By turns", "The person's turns in the dialogue", TURN_BINS, lambda row: turns_of(row["messages"])),
        ("By prompt length", "Words of the dialogue so far", WORD_BINS, lambda row: words_of(row["messages"])),
        ("By answer length", "In words, beside the other answer", LENGTH_BINS, _length_of),
    ]
    found = [_outcomes(title, f"{meaning}; {by}", rows, bins, of) for title, meaning, bins, of in groups]
    return [panel for panel in found if panel is not None]


def _gold(row: Row, score: str) -> float | None:
    return (row.get("gold") or {}).get(score)


def _by_prompt(rows: Sequence[Row], value: Callable[[Row], float | None]) -> dict[str, float]:
    """The mean over each prompt's answers."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if (own := value(row)) is not None:
            values.setdefault(str(row["prompt_id"]), []).append(own)
    return {prompt: fmean(own) for prompt, own in values.items()}


def _shift(title: str, how: str, answers: Answers, value: Callable[[Row], float | None]) -> Panel | None:
    names = list(answers)
    first, *others = ({name: _by_prompt(answers[name], value) for name in names}).items()
    before = first[1]
    found = [(name, own) for name, own in others if before.keys() & own.keys()]
    if not found:
        return None
    last, after = found[-1]
    gain = mean_interval([after[prompt] - before[prompt] for prompt in before if prompt in after])
    assert gain is not None
    label = in_a_sentence(names[0])
    return ridges(
        f"{title}, shift",
        [(version_label(name), list(before.values()), list(own.values())) for name, own in found],
        label,
        x_label="score",
        note=f"All versions {how}. From {label} to {version_label(last)} {signed(gain.mean)} "
        f"({interval(gain.ci, 2)}{chance(gain.ci, 0)}), prompt by prompt.",
    )


def _tail(pairs: Sequence[tuple[float, float]]) -> tuple[float, list[float] | None, int]:
    bar = sorted(before for before, _ in pairs)[math.ceil(len(pairs) / LOWEST) - 1]
    share = sum(own <= bar for _, own in pairs) / len(pairs)
    return share, wilson(share, len(pairs)).ci, len(pairs)


def _length_of(row: Row) -> str | None:
    other = (row.get("sft") or {}).get("answer")
    if other is None:
        return None
    own, others = len(str(row.get("answer", "")).split()), len(str(other).split())
    return LENGTH_BINS[1 if own <= ALIKE * others and others <= ALIKE * own else 2 if own > others else 0]


def _outcomes(
    title: str, meaning: str, rows: Sequence[Row], bins: Sequence[str], bin_of: Callable[[Row], str | None]
) -> Panel | None:
    grouped = {name: [row["outcome"] for row in rows if bin_of(row) == name] for name in bins}
    known = {name: outcomes for name, outcomes in grouped.items() if outcomes}
    counts = {
        "win": [sum(won > 0.5 for won in own) for own in known.values()],
        "tie": [sum(won == 0.5 for won in own) for own in known.values()],
        "loss": [sum(won < 0.5 for won in own) for own in known.values()],
    }
    sizes = [len(own) for own in known.values()]
    series = [
        Series(
            name,
            colour,
            range(len(known)),
            [count / n for count, n in zip(counts[name], sizes, strict=True)],
            [wilson(count / n, n).ci for count, n in zip(counts[name], sizes, strict=True)],
        )
        for name, colour in OUTCOMES
    ]
    prompts = ", ".join(f"{len(own)} ({name})" for name, own in known.items())
    note = f"{meaning}. Over {prompts} prompts; the fewer there are, the wider is the interval."
    return lines(title, series, names=list(known), percent=True, from_zero=True, note=note)
