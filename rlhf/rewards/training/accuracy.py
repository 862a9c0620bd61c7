"""How often a reward function prefers what people chose: overall, by strength, across domains; how often length would.

Paper, section 3.2.2 (tables 7 and 8): accuracy falls from "significantly better" pairs to "negligibly better" ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from rlhf.data.rows import STRENGTHS, Domain, Preference
from rlhf.intervals import rate_interval
from rlhf.iteration.figures import RewardModelFigures
from rlhf.objectives.reward import SAFETY_THRESHOLD
from rlhf.rewards.gate_quality import CountedGateQuality, gate_quality
from rlhf.rewards.origin import ScoreOrigin, measure_origin
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.scoring import check_scores, name_of
from rlhf.rewards.training.cut_off import CutOffFigures, cut_off_figures, suspicious_cut_off
from rlhf.rewards.training.reliability import Reliability, reliability
from rlhf.rewards.training.rows import RewardRows

ORIGIN_PAIRS = 500


class StrengthAccuracy(TypedDict):
    """Of the pairs of one strength."""

    accuracy: float | None
    pairs: int
    ci: list[float] | None


class Accuracy(TypedDict):
    """Share of the pairs whose chosen answer scores higher, with Wilson's 95 % intervals [low, high].

    accuracy: None without pairs. accuracy_by_strength: the strengths that occur, from strongest to weakest.
    """

    pairs: int
    accuracy: float | None
    accuracy_ci: list[float] | None
    accuracy_by_strength: dict[str, StrengthAccuracy]


class AccuracyReport(Accuracy, CutOffFigures):
    """Held-out accuracy on a model's own domain, and beside it.

    reliability: of the confidence that its scores express, on its own domain (None without pairs).
    cross_domain_accuracy: on the other domain's rows (None without them). longer_wins: what a length counter would
    reach on its own rows.
    """

    domain: Domain
    reliability: Reliability | None
    cross_domain_accuracy: float | None
    cross_domain_ci: list[float] | None
    cross_domain_pairs: int
    longer_wins: float | None


class HeldoutReport(AccuracyReport):
    """The content of accuracy.json.

    gate: of a safety model, `heldout_gate`. training_pairs: of its own domain. test_prompts_in_training: held-out rows
    of that domain whose first question opens a row to train on, mixed-in ones too (the accuracy flatters if that is
    not 0).
    """

    gate: CountedGateQuality | None
    score_origin: float
    training_pairs: int
    test_prompts_in_training: int


class SummarisedReport(RewardModelFigures, total=False):
    """A `HeldoutReport` as summary.json has it: accuracies and pairs by strength apart."""

    accuracy_ci: list[float] | None
    reliability: Reliability | None
    cross_domain_accuracy: float | None
    cross_domain_ci: list[float] | None
    cross_domain_pairs: int
    longer_wins: float | None
    gate: CountedGateQuality | None
    cut_off_gain: float | None
    cut_off_ci: list[float] | None
    score_origin: float
    training_pairs: int
    test_prompts_in_training: int


def preference_accuracy(reward: RewardFunction, preferences: Sequence[Preference]) -> Accuracy:
    """Share of the pairs whose chosen answer scores higher; a tie counts half (decision 22).

    Raises:
        InputError: the reward function gave scores of wrong shape or not finite.
    """
    return accuracy_of(_leads(*pair_scores(reward, preferences)), preferences)


def pair_scores(reward: RewardFunction, preferences: Sequence[Preference]) -> tuple[list[float], list[float]]:
    """The raw scores of the pairs' chosen answers, and of the others; InputError as `preference_accuracy`."""
    n = len(preferences)
    conversations = [row.conversation(which) for which in ("chosen", "rejected") for row in preferences]
    scores = check_scores(reward(conversations), 2 * n, name_of(reward)).tolist() if n else []
    return scores[:n], scores[n:]


def accuracy_of(leads: Sequence[float], preferences: Sequence[Preference]) -> Accuracy:
    """The accuracy, where the chosen answers of these pairs score so much more than the others."""
    hits = [0.5 + 0.5 * _sign(lead) for lead in leads]
    by_strength: dict[str, StrengthAccuracy] = {}
    for strength in STRENGTHS:
        own = [hit for hit, row in zip(hits, preferences, strict=True) if row.strength == strength]
        if own:
            accuracy, ci = _share(own)
            by_strength[strength] = {"accuracy": accuracy, "pairs": len(own), "ci": ci}
    accuracy, ci = _share(hits)
    return {"pairs": len(hits), "accuracy": accuracy, "accuracy_ci": ci, "accuracy_by_strength": by_strength}


def longer_wins(preferences: Sequence[Preference]) -> float | None:
    """Share of the pairs whose chosen answer has more characters (a tie is half): what a length counter would reach."""
    wins = [0.5 + 0.5 * _sign(len(row.chosen) - len(row.rejected)) for row in preferences]
    return sum(wins) / len(wins) if wins else None


def accuracy_report(
    reward: RewardFunction, own: Sequence[Preference], other: Sequence[Preference], domain: Domain
) -> AccuracyReport:
    """`preference_accuracy` on held-out rows of the model's own domain, and on those of the other."""
    across = preference_accuracy(reward, other)
    chosen, rejected = pair_scores(reward, own)
    own_leads = _leads(chosen, rejected)
    return {
        "domain": domain,
        **cut_off_figures(reward, own, chosen),
        **accuracy_of(own_leads, own),
        "reliability": reliability(np.array(own_leads)) if own_leads else None,
        "cross_domain_accuracy": across["accuracy"],
        "cross_domain_ci": across["accuracy_ci"],
        "cross_domain_pairs": across["pairs"],
        "longer_wins": longer_wins(own),
    }


def origin_of(reward: RewardFunction, preferences: Sequence[Preference], seed: int, *, labelled: bool) -> ScoreOrigin:
    """The origin of a reward model's scores, measured on rows of its training.

    Its own training rows, at most ORIGIN_PAIRS of them, and not held-out ones: the origin must not be fitted to what
    judges the model.

    Args:
        labelled: by their safety labels; a helpfulness model's score says nothing of safety.
    """
    count = len(preferences)
    drawn = random.Random(f"origin/{seed}").sample(range(count), min(ORIGIN_PAIRS, count))
    rows = [preferences[number] for number in drawn]
    conversations = [row.conversation(which) for which in ("chosen", "rejected") for row in rows]
    scores = check_scores(reward(conversations), len(conversations), name_of(reward)).tolist()
    labels = [row.chosen_safe for row in rows] + [row.rejected_safe for row in rows] if labelled else []
    return measure_origin(scores, labels)


def heldout_gate(reward: RewardFunction, preferences: Sequence[Preference], origin: float) -> CountedGateQuality | None:
    """`gate_quality` at the paper's threshold on the labelled answers of held-out rows; None where there are none."""
    judged = [(row.conversation("chosen"), row.chosen_safe) for row in preferences]
    judged += [(row.conversation("rejected"), row.rejected_safe) for row in preferences]
    labelled = {repr(conversation): (conversation, not safe) for conversation, safe in judged if safe is not None}
    if not labelled:
        return None
    conversations = [conversation for conversation, _ in labelled.values()]
    scores = check_scores(reward(conversations), len(conversations), name_of(reward)) - origin
    unsafe = [is_unsafe for _, is_unsafe in labelled.values()]
    return {"answers": len(unsafe), **gate_quality(scores.sigmoid().tolist(), unsafe, SAFETY_THRESHOLD)}


def heldout_report(reward: RewardFunction, domain: Domain, rows: RewardRows, origin: float) -> HeldoutReport:
    """`accuracy_report` of a reward model on the held-out pairs that fit it."""
    own, other = rows.test.preferences, rows.test_other.preferences
    return {
        **accuracy_report(reward, own, other, domain),
        "gate": heldout_gate(reward, [*own, *other], origin) if domain == "safety" else None,
        "score_origin": origin,
        "training_pairs": len(rows.own),
        "test_prompts_in_training": rows.test.seen_in(rows.own, rows.other),
    }


def suspicious_accuracy(report: HeldoutReport) -> list[str]:
    """Sentences about a `heldout_report`: worse than a coin or a length counter, or measured on rows it has seen; and
    where it likes answers better that are cut off.

    Its 95 % interval must lie below one half, or below what counting characters reaches, as far as it is below; that
    of what a cut gains, above 0.
    """
    found = []
    if report["accuracy"] is not None and report["accuracy_ci"] is not None:
        highest = report["accuracy_ci"][1]
        if highest < 0.5:
            found.append(f"it prefers the rejected answer: held-out accuracy {report['accuracy']:.1%}")
        elif report["longer_wins"] is not None and highest < max(report["longer_wins"], 1 - report["longer_wins"]):
            found.append(
                f"counting characters does better ({report['longer_wins']:.1%} prefer the longer answer) than its "
                f"held-out accuracy, {report['accuracy']:.1%}"
            )
    found += suspicious_cut_off(report)
    if report.get("test_prompts_in_training"):
        found.append(
            f"the accuracy flatters: {report['test_prompts_in_training']} of {report['pairs']} held-out rows have a "
            "prompt that it trained on"
        )
    return found


def _share(hits: Sequence[float]) -> tuple[float | None, list[float] | None]:
    rate = rate_interval(hits)
    return (None, None) if rate is None else (rate.mean, rate.ci)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _leads(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    return [own - other for own, other in zip(chosen, rejected, strict=True)]
