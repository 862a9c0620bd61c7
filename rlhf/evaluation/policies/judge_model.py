"""Judge models' verdicts on a version's answers against another's: win rates, the prompt being the unit. Light.

What a judge is asked and how it is read is in `rlhf.rewards.pair_judge`; of several judges the majority decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast, get_args

from rlhf.conversation import Conversation, decided
from rlhf.data.rows import Domain
from rlhf.evaluation.answers import Answer, by_prompt
from rlhf.intervals import rate_interval
from rlhf.rewards.pair_judge import (
    JudgeAgreement,
    Opinion,
    TwoAnswers,
    divided,
    judge_agreements,
    judge_counts,
    judge_requests,
    majority,
    opinion,
    panel_opinion,
)

Ask = Callable[[Sequence[Conversation]], Sequence[str]]
"""Gives a judge's text for each request."""


class JudgeRates(TypedDict, total=False):
    """What a judge model, or a panel of them, says of a version: the share of comparisons that it wins, over all
    prompts and by domain."""

    judge_model: str
    judge_counts: dict[str, int]
    judge_win_rate: float | None
    judge_win_rate_ci: list[float] | None
    judge_win_rate_helpfulness: float | None
    judge_win_rate_helpfulness_ci: list[float] | None
    judge_win_rate_safety: float | None
    judge_win_rate_safety_ci: list[float] | None


class JudgeFigures(JudgeRates, total=False):
    """The same of all judges together, and of each in `judges`.

    judge_opponent: whose answers the version's were compared with. judge_agreement: of each two judges. judge_divided:
    pairs of which one judge chooses one answer and another the other.
    """

    judge_opponent: str
    judges: list[JudgeRates]
    judge_agreement: list[JudgeAgreement]
    judge_divided: int


@dataclass(frozen=True)
class Judged:
    """What judges say of a version's answers.

    Args:
        outcomes: of each answer, by the majority: 1 where it wins, 0 where it loses, 0.5 for a tie, None where nobody
            was asked or no judgement could be read.
        by_judge: the same by each judge alone.
        opinions: judge -> what it said of the pairs that it was asked about, in the order of the answers.
    """

    outcomes: list[float | None]
    by_judge: dict[str, list[float | None]]
    opinions: dict[str, list[Opinion]]

    def rows(self) -> list[dict[str, Any]]:
        """What the row of each answer has of it."""
        own = zip(*self.by_judge.values(), strict=True)
        by_judge = [dict(zip(self.by_judge, outcomes, strict=True)) for outcomes in own]
        together = zip(self.outcomes, by_judge, strict=True)
        return [{"judge_outcome": outcome, "judge_outcomes": outcomes} for outcome, outcomes in together]


def judged_outcomes(answers: Sequence[Answer], opponents: Sequence[Answer], judges: Mapping[str, Ask]) -> Judged:
    """Each answer's outcome against an opponent's answer to its prompt, by every judge and by their majority.

    Equal answers tie and an empty one loses without a judge. The opponent's answer is that of the same index, where
    there are fewer the index over again; the outcome is None where there is none, or no judgement could be read.

    Args:
        answers, opponents: to the same prompts.
        judges: name -> how it is asked.
    """
    theirs: dict[str, list[str]] = {}
    for other in opponents:
        theirs.setdefault(other.prompt_id, []).append(other.answer.strip())
    plain: list[float | None] = []
    pairs: dict[int, TwoAnswers] = {}  # by the answer's place
    for place, answer in enumerate(answers):
        mine, others = answer.answer.strip(), theirs.get(answer.prompt_id)
        other_text = None if others is None else others[answer.index % len(others)]
        plain.append(None if other_text is None else decided(mine, other_text))
        if other_text is not None and plain[-1] is None:
            pairs[place] = TwoAnswers(answer.messages, mine, other_text, answer.domain)
    requests = [request for pair in pairs.values() for request in judge_requests(pair)]
    opinions: dict[str, list[Opinion]] = {}
    for name, ask in judges.items():
        texts = ask(requests) if requests else []
        opinions[name] = [opinion(*texts[start : start + 2]) for start in range(0, len(texts), 2)]

    def filled(of_pairs: Sequence[float | None]) -> list[float | None]:
        asked = dict(zip(pairs, of_pairs, strict=True))
        return [asked.get(place, outcome) for place, outcome in enumerate(plain)]

    by_pair = {name: [o.outcome for o in own] for name, own in opinions.items()}
    panel = [majority(of_pair) for of_pair in zip(*by_pair.values(), strict=True)]
    return Judged(filled(panel), {name: filled(own) for name, own in by_pair.items()}, opinions)


def judge_figures(answers: Sequence[Answer], judged: Judged, opponent: str) -> JudgeFigures:
    """What a version's figures say of its judges.

    Ties count half, pairs that no judgement decided are left out, the prompt is the unit of the intervals. Rates are
    None without pairs.
    """
    panel = [panel_opinion(of_pair) for of_pair in zip(*judged.opinions.values(), strict=True)]
    by_pair = {name: [o.outcome for o in own] for name, own in judged.opinions.items()}
    return {
        **_rates(answers, judged.outcomes, panel, ", ".join(judged.opinions)),
        "judge_opponent": opponent,
        "judges": [_rates(answers, judged.by_judge[name], own, name) for name, own in judged.opinions.items()],
        "judge_agreement": judge_agreements(by_pair),
        "judge_divided": divided(by_pair),
    }


def _rates(
    answers: Sequence[Answer], outcomes: Sequence[float | None], opinions: Sequence[Opinion], name: str
) -> JudgeRates:
    by_answer = {id(answer): outcome for answer, outcome in zip(answers, outcomes, strict=True)}
    figures: dict[str, Any] = {"judge_model": name, "judge_counts": judge_counts(opinions)}
    for domain in (None, *get_args(Domain)):
        own = [answer for answer in answers if domain in (None, answer.domain)]
        found = rate_interval(by_prompt(own, lambda answer: by_answer[id(answer)]))
        rate = "judge_win_rate" if domain is None else f"judge_win_rate_{domain}"
        ci = None if found is None else found.ci
        figures[rate] = None if found is None else round(found.mean, 6)
        figures[f"{rate}_ci"] = None if ci is None else [round(x, 6) for x in ci]
    return cast(JudgeRates, figures)
