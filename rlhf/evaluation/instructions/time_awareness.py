"""Answers at the right date: how often a policy says what held at the date in the context (Llama 2 paper, 5.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypedDict

from rlhf.conversation import Conversation
from rlhf.intervals import mean_interval, rate_interval

PERIODS = ("all", "not yet", "earlier", "newest")


@dataclass(frozen=True)
class DatedAnswer:
    """One policy's answer to one question of a test file.

    Args:
        policy, run: whose it is.
        group: what training saw of the question (`rlhf.synthesis.time_awareness.SPLITS`), or "no date".
        period: "not yet", "earlier" or "newest" (`rlhf.synthesis.time_awareness.DatedFact.period`).
        messages: the prompt.
        answer: its text.
        right: whether it says what held at the date.
        finished: it came to its end.
    """

    policy: str
    run: str
    group: str
    period: str
    messages: Conversation
    answer: str
    right: bool
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TimeFigures(TypedDict):
    """A row of time_awareness.json: the share of right answers of one policy, group and period ("all" too).

    The unit is the fact (of a run): its questions are averaged first; the share's interval is Wilson's over facts. The
    gain over the first policy is paired by fact, with Student's t; None for the first policy itself.
    """

    policy: str
    group: str
    period: str
    right: float | None
    ci: list[float] | None
    gain: float | None
    gain_ci: list[float] | None
    facts: int
    questions: int
    by_run: dict[str, float]


def time_figures(answers: Sequence[DatedAnswer]) -> list[TimeFigures]:
    """A row for each policy, group and period."""
    first = answers[0].policy
    figures: list[TimeFigures] = []
    for policy in dict.fromkeys(answer.policy for answer in answers):
        for group in dict.fromkeys(answer.group for answer in answers):
            for period in PERIODS:
                there = [a for a in answers if a.group == group and period in ("all", a.period)]
                own, base = ([a for a in there if a.policy == name] for name in (policy, first))
                if not own:
                    continue
                by_fact, before = _by_fact(own), _by_fact(base)
                found = rate_interval(list(by_fact.values()))
                gain = mean_interval([by_fact[fact] - before[fact] for fact in by_fact]) if policy != first else None
                by_run = {
                    run: fmean(value for (its, _), value in by_fact.items() if its == run)
                    for run in dict.fromkeys(run for run, _ in by_fact)
                }
                figures.append(
                    {
                        "policy": policy,
                        "group": group,
                        "period": period,
                        "right": None if found is None else found.mean,
                        "ci": None if found is None else found.ci,
                        "gain": None if gain is None else gain.mean,
                        "gain_ci": None if gain is None else gain.ci,
                        "facts": len(by_fact),
                        "questions": len(own),
                        "by_run": by_run,
                    }
                )
    return figures


def _by_fact(answers: Iterable[DatedAnswer]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[bool]] = {}
    for answer in answers:
        found.setdefault((answer.run, answer.messages[-1]["content"]), []).append(answer.right)
    return {fact: fmean(right) for fact, right in found.items()}
