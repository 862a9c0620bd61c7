"""The figures of a human evaluation: how often one model's answer wins, ties and loses (paper, 3.4.2 and A.3.7).

A pair's outcome is the median of its raters' points (decision 59). The unit is the prompt: intervals are Wilson's over
pairs. How far the raters agree is Gwet's AC2 over the seven points and AC1 over win, tie and loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypedDict

from rlhf.annotation.agreement import Agreement, gwet
from rlhf.annotation.comparison import BATCH, JUDGE, Comparison, Given
from rlhf.annotation.protocol import Judgement, Outcome
from rlhf.annotation.scales import EVALUATION
from rlhf.annotation.store import Store
from rlhf.conversation import Conversation
from rlhf.intervals import wilson

FILE = "human_evaluation.json"
OUTCOMES: tuple[Outcome, ...] = ("a", "tie", "b")
WORDS = (16, 64, 256)  # upper ends of the bins of prompt length, the last one open
TURNS = 4  # from so many on they are one bin


class Share(TypedDict):
    """A share of pairs with Wilson's 95 % interval."""

    rate: float
    ci: list[float] | None


class Rates(TypedDict):
    """Of some pairs: how often the first model's answer wins, ties and loses; `win_rate` counts a tie half."""

    pairs: int
    win: Share | None
    tie: Share | None
    loss: Share | None
    win_rate: Share | None


class Coefficient(TypedDict):
    """One of Gwet's coefficients with its 95 % interval, over `items` pairs with two ratings or more."""

    value: float
    ci: list[float] | None
    items: int


class JudgeAgreement(TypedDict):
    """A judge model against people, over the pairs that both rated: the same outcome as people's median, and AC2."""

    pairs: int
    same: Share | None
    ac2: Coefficient | None


class HumanEvaluation(TypedDict):
    """The content of human_evaluation.json. All rates are the first model's.

    models: the first and the second. people, judges: who rated how often. skipped: reason -> count. decided: pairs that
    nobody needed to look at. unrated: pairs without a rating, which are in no rate. unmatched: prompts that one model
    alone answered. left: share of choices that took the left answer. turns, words, domains: rates by the number of the
    person's turns, by words of the dialogue up to the answer, by domain. ac1: of win, tie and loss; ac2: of the seven
    points, ordinal weights. judge_agreement: by judge. gold: the same rates by the simulated world's gold; gold_same:
    how often the raters' outcome is gold's.
    """

    models: list[str]
    people: dict[str, int]
    judges: dict[str, int]
    skipped: dict[str, int]
    decided: int
    unrated: int
    unmatched: int
    left: Share | None
    all: Rates
    turns: dict[str, Rates]
    words: dict[str, Rates]
    domains: dict[str, Rates]
    ac1: Coefficient | None
    ac2: Coefficient | None
    judge_agreement: dict[str, JudgeAgreement]
    gold: dict[str, Rates] | None
    gold_same: Share | None


def human_evaluation(
    store: Store, comparison: Comparison, gold: Callable[[Given, Given], Outcome] | None = None
) -> HumanEvaluation:
    """All figures of what was rated so far.

    Args:
        gold: the true outcome of two answers whose `gold` is known; None: there are no figures of gold.
    """
    judgements = [j for *_, j in store.judged(BATCH)] if BATCH in store.batches() else []
    rated = [j for j in judgements if j.choice is not None]
    machines = [j for j in rated if is_judge(j)]
    by_people = [j for j in rated if not is_judge(j)]
    points = _points(rated)
    outcomes = comparison.decided | {pair: outcome_of(some) for pair, some in points.items()}
    sides = [j.choice == j.left for j in by_people if j.left is not None and j.choice != "tie"]
    truth: dict[str, Outcome] = {}
    if gold is not None:
        known = {id: both for id, both in comparison.given.items() if both[0].gold and both[1].gold}
        truth = {id: gold(*both) for id, both in known.items()}
    same = [outcomes[pair] == right for pair, right in truth.items() if pair in outcomes]
    people = _points(by_people)
    return {
        "models": list(comparison.names),
        "people": dict(Counter(j.annotator for j in by_people)),
        "judges": dict(Counter(j.annotator for j in machines)),
        "skipped": dict(Counter(j.skipped for j in judgements if j.choice is None)),
        "decided": len(comparison.decided),
        "unrated": len(comparison.given) - len(outcomes),
        "unmatched": comparison.unmatched,
        "left": _share(sum(sides), len(sides)),
        **_by_group(comparison, outcomes),  # type: ignore[typeddict-item]
        "ac1": _coefficient(gwet([[outcome_of([p]) for p in some] for some in points.values()], OUTCOMES)),
        "ac2": _coefficient(gwet(list(points.values()), EVALUATION.ratings, "ordinal")),
        "judge_agreement": {
            name: judge_agreement(_points([j for j in machines if j.annotator == name]), people)
            for name in dict.fromkeys(j.annotator for j in machines)
        },
        "gold": _by_group(comparison, truth) if truth else None,
        "gold_same": _share(sum(same), len(same)),
    }


def is_judge(judgement: Judgement) -> bool:
    """Whether a judge model gave it, to whom nothing stands left; what people said elsewhere may not say it either."""
    return judgement.left is None and judgement.annotator.startswith(JUDGE)


def outcome_of(points: Sequence[int]) -> Outcome:
    """Who wins by the raters' points (`Scale.rating`): the sign of their median (decision 59)."""
    middle = median(points)
    return "a" if middle > 0 else "b" if middle < 0 else "tie"


def judge_agreement(judge: Mapping[str, Sequence[int]], people: Mapping[str, Sequence[int]]) -> JudgeAgreement:
    """How far a judge's points and people's agree, by pair id."""
    both = [pair for pair in judge if pair in people]
    same = sum(outcome_of(judge[pair]) == outcome_of(people[pair]) for pair in both)
    # an even number of people may have their median between two points: the one nearer to a tie
    ratings = [[int(median(judge[pair])), int(median(people[pair]))] for pair in both]
    return {
        "pairs": len(both),
        "same": _share(same, len(both)),
        "ac2": _coefficient(gwet(ratings, EVALUATION.ratings, "ordinal")),
    }


def rates(outcomes: Sequence[Outcome]) -> Rates:
    """Win, tie and loss of the first model."""
    win, tie, loss = (sum(outcome == each for outcome in outcomes) for each in OUTCOMES)
    n = len(outcomes)
    counts = {"win": win, "tie": tie, "loss": loss, "win_rate": win + tie / 2}
    return {"pairs": n, **{name: _share(count, n) for name, count in counts.items()}}  # type: ignore[typeddict-item]


def _by_group(comparison: Comparison, outcomes: Mapping[str, Outcome]) -> dict[str, Rates | dict[str, Rates]]:
    known = {pair: comparison.given[pair][0] for pair in comparison.given if pair in outcomes}

    def grouped(name_of: Callable[[Given], str], names: Sequence[str]) -> dict[str, Rates]:
        groups = {name: [outcomes[pair] for pair, given in known.items() if name_of(given) == name] for name in names}
        return {name: rates(some) for name, some in groups.items() if some}

    return {
        "all": rates([outcomes[pair] for pair in known]),
        "turns": grouped(lambda given: turns_of(given.messages), TURN_BINS),
        "words": grouped(lambda given: words_of(given.messages), WORD_BINS),
        "domains": grouped(lambda given: given.domain, ("helpfulness", "safety")),
    }


TURN_BINS = [*(str(n) for n in range(1, TURNS)), f"{TURNS} or more"]
WORD_BINS = [
    *(f"{low + 1} to {high}" for low, high in zip((0, *WORDS), WORDS, strict=False)),
    f"{WORDS[-1] + 1} or more",
]


def turns_of(messages: Conversation) -> str:
    """The bin of the number of the person's turns; 1 is a single-turn prompt."""
    turns = sum(message["role"] == "user" for message in messages)
    return str(turns) if turns < TURNS else f"{TURNS} or more"


def words_of(messages: Conversation) -> str:
    """The bin of the words of the whole dialogue up to the answer."""
    words = sum(len(message["content"].split()) for message in messages)
    return WORD_BINS[sum(words > bound for bound in WORDS)]


def _points(judgements: Sequence[Judgement]) -> dict[str, list[int]]:
    points: dict[str, list[int]] = {}
    for judgement in judgements:
        if (rating := EVALUATION.rating(judgement)) is not None:
            points.setdefault(judgement.pair, []).append(rating)
    return points


def _share(hits: float, n: int) -> Share | None:
    return {"rate": hits / n, "ci": wilson(hits / n, n).ci} if n else None


def _coefficient(found: Agreement | None) -> Coefficient | None:
    if found is None:
        return None
    ci = None if found.low is None or found.high is None else [found.low, found.high]
    return {"value": found.coefficient, "ci": ci, "items": found.items}
