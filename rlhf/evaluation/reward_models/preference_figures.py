"""How well scores agree with what people chose, and where: by strength, safety labels, source and length.

Paper, section 3.2.2: table 7 (own and other domains), table 8 (by strength), and the ablation of the auxiliary safety
loss (by safety labels, and the recall of unsafe answers). Light: no torch,
and numpy when called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeVar, get_args

from rlhf.data.rows import STRENGTHS, Domain, Preference
from rlhf.intervals import mean_interval, rate_interval

if TYPE_CHECKING:
    from rlhf.evaluation.reward_models.calibration import Calibration, Qualities
    from rlhf.evaluation.reward_models.pair_scores import PairScore
    from rlhf.evaluation.scorers import GoldScorer

Figures = TypeVar("Figures")
MATCHED = 0.1
FLAGGED_SAFE = 0.1
LENGTH_BINS = ("shorter_chosen", "matched", "longer_chosen")
SAFETY_BINS = {
    (True, False): "chosen_safe_other_unsafe",
    (True, True): "both_safe",
    (False, False): "both_unsafe",
}


class Share(TypedDict):
    """Share of some pairs whose chosen answer scores higher, a tie half, with Wilson's 95 % interval."""

    pairs: int
    accuracy: float | None
    ci: list[float] | None


class PairedGain(TypedDict):
    """By how much one judge is right more often than another on the same pairs, with the t interval over the pairs."""

    pairs: int
    gain: float | None
    ci: list[float] | None


class PrefersLonger(TypedDict):
    """Of the pairs whose answers differ in characters, the share where the longer one scores higher."""

    pairs: int
    share: float | None


class AccuracyFigures(Share):
    """The same by bins, name -> share, of the bins that occur; rows without the label are in none."""

    prefers_longer: PrefersLonger
    by_strength: dict[str, Share]
    by_safety: dict[str, Share]
    by_source: dict[str, Share]
    by_length: dict[str, Share]


class Flagged(TypedDict):
    """Recall of unsafe answers, at 0.5 and where a tenth of the safe ones is flagged; with Wilson's intervals."""

    recall: float | None
    recall_ci: list[float] | None
    safe_flagged: float | None
    safe_flagged_ci: list[float] | None
    matched_recall: float | None
    matched_recall_ci: list[float] | None


class UnsafeRecall(TypedDict):
    """By the score, and by the safety head's logits (None without that head)."""

    unsafe_answers: int
    safe_answers: int
    score: Flagged
    safety_head: Flagged | None


class RewardFigures(AccuracyFigures, total=False):
    """Of one reward function, or of a baseline; counting characters has neither of the two: they are no log-odds."""

    unsafe_recall: UnsafeRecall | None
    calibration: Calibration


class EvaluatedReward(TypedDict):
    """A reward function by its spec, and its figures: of all pairs, and of each domain.

    over_bag_of_words: domain -> its gain over the bag of words that was trained on that domain's pairs.
    cut_off_gain, cut_off_ci: `rlhf.rewards.training.cut_off.CutOffFigures`.
    """

    spec: str
    groups: dict[str, RewardFigures]
    over_bag_of_words: dict[str, PairedGain]
    cut_off_gain: float | None
    cut_off_ci: list[float] | None


class RewardEvaluation(TypedDict):
    """The content of reward_evaluation.json.

    test_pairs: group ("all", and each domain) -> how many. test_prompts_in_training: None without training rows.
    baselines: name -> group -> figures.
    """

    test_pairs: dict[str, int]
    test_prompts_in_training: int | None
    rewards: dict[str, EvaluatedReward]
    baselines: dict[str, dict[str, RewardFigures]]


def reward_figures(
    preferences: Sequence[Preference], scores: Sequence[PairScore], qualities: Qualities | None = None
) -> dict[str, RewardFigures]:
    """Every figure of one reward function: under "all", and under each domain that the rows have.

    Args:
        scores: of the rows, in their order.
        qualities: the true quality 0..1 of both answers of each row, where it is known.
    """
    from rlhf.evaluation.reward_models.calibration import calibration_figures

    def measure(own: list[int]) -> RewardFigures:
        rows, pairs = [preferences[i] for i in own], [scores[i] for i in own]
        return {
            **accuracy_figures(rows, pairs),
            "unsafe_recall": unsafe_recall(rows, pairs),
            "calibration": calibration_figures(rows, pairs, None if qualities is None else [qualities[i] for i in own]),
        }

    return by_group(preferences, measure)


def by_group(preferences: Sequence[Preference], measure: Callable[[list[int]], Figures]) -> dict[str, Figures]:
    """`measure` of the row numbers of "all", and of each domain that the rows have."""
    groups = {"all": list(range(len(preferences)))}
    for domain in get_args(Domain):
        groups[domain] = [i for i, row in enumerate(preferences) if row.domain == domain]
    return {group: measure(own) for group, own in groups.items() if own}


def true_qualities(preferences: Sequence[Preference], scorer: GoldScorer) -> list[tuple[float, float]]:
    """The gold scorer's verdict on (chosen, rejected) of each row, in what the row's domain asks for; 0..1."""
    return [
        (
            float(getattr(scorer.judge(row.conversation("chosen")), row.domain)),
            float(getattr(scorer.judge(row.conversation("rejected")), row.domain)),
        )
        for row in preferences
    ]


def accuracy_figures(preferences: Sequence[Preference], scores: Sequence[PairScore]) -> AccuracyFigures:
    """Accuracy on all of the rows, and by bins of them."""
    hits = [pair.hit for pair in scores]
    return {
        **_share(hits),
        "prefers_longer": _prefers_longer(preferences, hits),
        "by_strength": _binned([row.strength for row in preferences], hits, STRENGTHS),
        "by_safety": _binned([_safety_bin(row) for row in preferences], hits, tuple(SAFETY_BINS.values())),
        "by_source": _binned([row.source or None for row in preferences], hits),
        "by_length": _binned([length_bin(row) for row in preferences], hits, LENGTH_BINS),
    }


def paired_gain(hits: Sequence[float], others: Sequence[float]) -> PairedGain:
    """Accuracy less that of another judge of the same pairs.

    The interval is that of the differences pair by pair: two judges who are right on the same pairs are told apart by
    far fewer pairs than their own two intervals would need.

    Args:
        hits, others: 1, 0 or 0.5 of each pair (`PairScore.hit`), or means of several models' of one pair.
    """
    found = mean_interval([hit - other for hit, other in zip(hits, others, strict=True)])
    if found is None:
        return {"pairs": 0, "gain": None, "ci": None}
    return {"pairs": len(hits), "gain": found.mean, "ci": found.ci}


def length_bin(row: Preference) -> str:
    """matched where the answers' lengths in characters differ by at most 10 % of the longer one; else who is longer."""
    gap, longest = len(row.chosen) - len(row.rejected), max(len(row.chosen), len(row.rejected))
    if abs(gap) <= MATCHED * longest:
        return "matched"
    return "longer_chosen" if gap > 0 else "shorter_chosen"


def unsafe_recall(preferences: Sequence[Preference], scores: Sequence[PairScore]) -> UnsafeRecall | None:
    """Share of the answers labelled unsafe whose sigmoid(score) is below 0.5, and of those labelled safe beside it.

    A model that calls everything unsafe has recall 1: the second share is what that costs. The ranking loss leaves open
    where 0.5 lies; so also the recall where a tenth of the safe answers is flagged, which a shift of all scores does
    not change (decision 21). None where no answer is labelled.
    """
    answers = [
        (safe, score, logit)
        for row, pair in zip(preferences, scores, strict=True)
        for safe, score, logit in (
            (row.chosen_safe, pair.chosen, pair.chosen_logit),
            (row.rejected_safe, pair.rejected, pair.rejected_logit),
        )
        if safe is not None
    ]
    if not answers:
        return None
    has_head = answers[0][2] is not None
    return {
        "unsafe_answers": sum(not safe for safe, _, _ in answers),
        "safe_answers": sum(safe for safe, _, _ in answers),
        "score": _flagged([(safe, score) for safe, score, _ in answers]),
        "safety_head": _flagged([(safe, logit) for safe, _, logit in answers if logit is not None])
        if has_head
        else None,
    }


def _flagged(answers: Sequence[tuple[bool, float]]) -> Flagged:
    unsafe, safe = (sorted(value for label, value in answers if label == which) for which in (False, True))
    recall, safe_flagged = (rate_interval([float(value < 0) for value in values]) for values in (unsafe, safe))
    limit = safe[int(FLAGGED_SAFE * len(safe))] if safe else None
    matched = None if limit is None else rate_interval([float(value < limit) for value in unsafe])
    return {
        "recall": None if recall is None else recall.mean,
        "recall_ci": None if recall is None else recall.ci,
        "safe_flagged": None if safe_flagged is None else safe_flagged.mean,
        "safe_flagged_ci": None if safe_flagged is None else safe_flagged.ci,
        "matched_recall": None if matched is None else matched.mean,
        "matched_recall_ci": None if matched is None else matched.ci,
    }


def _prefers_longer(preferences: Sequence[Preference], hits: Sequence[float]) -> PrefersLonger:
    lengths = [(len(row.chosen), len(row.rejected)) for row in preferences]
    longer = [hit if c > r else 1 - hit for hit, (c, r) in zip(hits, lengths, strict=True) if c != r]
    return {"pairs": len(longer), "share": sum(longer) / len(longer) if longer else None}


def _safety_bin(row: Preference) -> str | None:
    if row.chosen_safe is None or row.rejected_safe is None:
        return None
    return SAFETY_BINS[row.chosen_safe, row.rejected_safe]


def _binned(names: Sequence[str | None], hits: Sequence[float], order: Sequence[str] = ()) -> dict[str, Share]:
    shares: dict[str, Share] = {}
    for name in order or sorted({name for name in names if name is not None}):
        own = [hit for hit, of in zip(hits, names, strict=True) if of == name]
        if own:
            shares[name] = _share(own)
    return shares


def _share(hits: Sequence[float]) -> Share:
    rate = rate_interval(hits)
    if rate is None:
        return {"pairs": 0, "accuracy": None, "ci": None}
    return {"pairs": len(hits), "accuracy": rate.mean, "ci": rate.ci}
