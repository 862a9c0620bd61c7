"""How well scores agree with what people chose, and where: by strength, safety labels, source and length.

Paper, section 3.2.2: table 7 (own and other domains), table 8 (by strength), and the ablation of the auxiliary safety
loss (by safety labels, and the recall of unsafe answers). Light: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from rlhf.data.rows import STRENGTHS, Domain, Preference
from rlhf.evaluation.reward_models.calibration import Qualities, calibration_figures
from rlhf.intervals import rate_interval

if TYPE_CHECKING:
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


def reward_figures(
    preferences: Sequence[Preference], scores: Sequence[PairScore], qualities: Qualities | None = None
) -> dict[str, dict[str, Any]]:
    """Every figure of one reward function: under "all", and under each domain that the rows have.

    Args:
        scores: of the rows, in their order.
        qualities: the true quality 0..1 of both answers of each row, where it is known.

    Returns:
        group -> `accuracy_figures`, "unsafe_recall" and "calibration" (`rlhf.evaluation.reward_models.calibration`).
    """

    def measure(own: list[int]) -> dict[str, Any]:
        rows, pairs = [preferences[i] for i in own], [scores[i] for i in own]
        return {
            **accuracy_figures(rows, pairs),
            "unsafe_recall": unsafe_recall(rows, pairs),
            "calibration": calibration_figures(rows, pairs, qualities and [qualities[i] for i in own]),
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


def accuracy_figures(preferences: Sequence[Preference], scores: Sequence[PairScore]) -> dict[str, Any]:
    """Share of the pairs whose chosen answer scores higher, a tie half, with Wilson's 95 % interval; and by bins.

    Returns:
        {"pairs", "accuracy", "ci", "prefers_longer": {"pairs", "share"}, "by_strength", "by_safety", "by_source",
        "by_length"}; each of the last four {bin: {"pairs", "accuracy", "ci"}} of the bins that occur; rows without
        the label are in none.
    """
    hits = [pair.hit for pair in scores]
    return {
        **_share(hits),
        "prefers_longer": _prefers_longer(preferences, hits),
        "by_strength": _binned([row.strength for row in preferences], hits, STRENGTHS),
        "by_safety": _binned([_safety_bin(row) for row in preferences], hits, tuple(SAFETY_BINS.values())),
        "by_source": _binned([row.source or None for row in preferences], hits),
        "by_length": _binned([length_bin(row) for row in preferences], hits, LENGTH_BINS),
    }


def length_bin(row: Preference) -> str:
    """matched where the answers' lengths in characters differ by at most 10 % of the longer one; else who is longer."""
    gap, longest = len(row.chosen) - len(row.rejected), max(len(row.chosen), len(row.rejected))
    if abs(gap) <= MATCHED * longest:
        return "matched"
    return "longer_chosen" if gap > 0 else "shorter_chosen"


def unsafe_recall(preferences: Sequence[Preference], scores: Sequence[PairScore]) -> dict[str, Any] | None:
    """Share of the answers labelled unsafe whose sigmoid(score) is below 0.5, and of those labelled safe beside it.

    A model that calls everything unsafe has recall 1: the second share is what that costs. The ranking loss leaves open
    where 0.5 lies; so also the recall where a tenth of the safe answers is flagged, which a shift of all scores does
    not change (decision 21).

    Returns:
        {"unsafe_answers", "safe_answers", "score": {"recall", "recall_ci", "safe_flagged", "safe_flagged_ci",
        "matched_recall", "matched_recall_ci"}, "safety_head": the same by its logits, None without that head}; None
        where no answer is labelled.
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


def _flagged(answers: Sequence[tuple[bool, float]]) -> dict[str, Any]:
    unsafe, safe = (sorted(value for label, value in answers if label == which) for which in (False, True))
    recall, safe_flagged = (rate_interval([float(value < 0) for value in values]) for values in (unsafe, safe))
    limit = safe[int(FLAGGED_SAFE * len(safe))] if safe else None
    matched = None if limit is None else rate_interval([float(value < limit) for value in unsafe])
    return {
        "recall": recall and recall.mean,
        "recall_ci": recall and recall.ci,
        "safe_flagged": safe_flagged and safe_flagged.mean,
        "safe_flagged_ci": safe_flagged and safe_flagged.ci,
        "matched_recall": matched and matched.mean,
        "matched_recall_ci": matched and matched.ci,
    }


def _prefers_longer(preferences: Sequence[Preference], hits: Sequence[float]) -> dict[str, Any]:
    """Of the pairs whose answers differ in characters, the share where the longer one scores higher."""
    lengths = [(len(row.chosen), len(row.rejected)) for row in preferences]
    longer = [hit if c > r else 1 - hit for hit, (c, r) in zip(hits, lengths, strict=True) if c != r]
    return {"pairs": len(longer), "share": sum(longer) / len(longer) if longer else None}


def _safety_bin(row: Preference) -> str | None:
    if row.chosen_safe is None or row.rejected_safe is None:
        return None
    return SAFETY_BINS[row.chosen_safe, row.rejected_safe]


def _binned(names: Sequence[str | None], hits: Sequence[float], order: Sequence[str] = ()) -> dict[str, Any]:
    shares = {}
    for name in order or sorted({name for name in names if name is not None}):
        own = [hit for hit, of in zip(hits, names, strict=True) if of == name]
        if own:
            shares[name] = _share(own)
    return shares


def _share(hits: Sequence[float]) -> dict[str, Any]:
    rate = rate_interval(hits)
    return {"pairs": len(hits), "accuracy": rate and rate.mean, "ci": rate and rate.ci}
