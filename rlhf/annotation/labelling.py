"""A batch through an annotator, and what is known of it then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rlhf.annotation.protocol import Annotator, Judgement, preference_of
from rlhf.annotation.store import FullError, JudgedError, Progress, Store
from rlhf.data.rows import STRENGTHS, Preference
from rlhf.errors import InputError, quoted
from rlhf.intervals import wilson


def batch_name(stage: Path) -> str:
    """What the batch of a stage that collects judgements is called in the store: v1/preferences, by its folder."""
    return "/".join(stage.parts[-2:])


def label_batch(store: Store, batch: str, annotator: Annotator, told: Callable[[Progress], None] | None = None) -> None:
    """Have the annotator judge every pair of the batch that still wants a judgement; each is kept before the next.

    Args:
        store: where the batch is, and its judgements go.
        batch: its name.
        annotator: who judges; a judgement of a pair that others filled meanwhile is passed over.
        told: called after every judgement that is kept.

    Raises:
        InputError: the annotator gives what is no judgement, judges a pair that is not in the batch, or one twice and
            differently.
    """
    judgements = annotator.judge(store.unjudged(batch, annotator.name))
    if not isinstance(judgements, Iterable):
        raise InputError(f"annotator: {annotator.name} must yield its judgements, got {quoted(judgements)}")
    for judgement in judgements:
        if not isinstance(judgement, Judgement):
            raise InputError(
                f"annotator: {annotator.name} must yield rlhf.annotation.protocol.Judgement, got {quoted(judgement)}"
            )
        try:
            new = store.keep(batch, judgement)
        except FullError:
            continue
        except JudgedError as error:
            raise InputError(
                f"annotator: {judgement.annotator} judges pair {judgement.pair!r} twice, and differently"
            ) from error
        except InputError as error:
            raise InputError(
                f"annotator: {judgement.annotator} gives a judgement that cannot be kept ({error})"
            ) from error
        if new and told is not None:
            told(store.progress(batch))


def preferences_of(store: Store, batch: str) -> dict[str, list[Preference]]:
    """A batch's rows by the id of their pair, in the order of the pairs; a pair that was only skipped or
    tied is not in it.

    A pair with several judgements gives a row for each, with the annotator's name behind its id.
    """
    choices: dict[str, list[Judgement]] = {}
    for *_, judgement in store.judged(batch):
        if judgement.choice in ("a", "b"):
            choices.setdefault(judgement.pair, []).append(judgement)
    rows: dict[str, list[Preference]] = {}
    for pair in store.pairs(batch):
        given = choices.get(pair.id, [])
        several = len(given) > 1
        found = [preference_of(pair, each, f"{pair.id}-{each.annotator}" if several else "") for each in given]
        if found:
            rows[pair.id] = [row for row in found if row is not None]
    return rows


def batch_figures(store: Store, batch: str) -> dict[str, Any]:
    """Counts of a batch, plain JSON types.

    {"pairs", "complete", "judgements", "skipped": reason -> count, "strengths": strength -> share of the choices that
    have one, "safety": bin -> share of the choices with both labels, "left_chosen": share of the choices with a left
    answer that took it, and its Wilson interval (far from a half: somebody looks at one side only), "annotators": name
    -> {"judgements", "skipped", "median_seconds"}, "agreement": `agreement_of`, None where no pair has two}.
    """
    judgements = [judgement for *_, judgement in store.judged(batch)]
    chosen = [judgement for judgement in judgements if judgement.choice is not None]
    progress = store.progress(batch)
    bins = {(True, False): "chosen_safe_only", (True, True): "both_safe", (False, False): "both_unsafe"}
    labels = [bins[j.chosen_safe, j.rejected_safe] for j in chosen if None not in (j.chosen_safe, j.rejected_safe)]  # type: ignore[index]
    sides = [judgement.choice == judgement.left for judgement in chosen if judgement.left and judgement.choice != "tie"]
    return {
        "pairs": progress.pairs,
        "complete": progress.complete,
        "judgements": len(chosen),
        "skipped": dict(Counter(judgement.skipped for judgement in judgements if judgement.choice is None)),
        "strengths": _shares([j.strength for j in chosen if j.strength is not None], STRENGTHS),
        "safety": _shares(labels, tuple(bins.values())),
        "left_chosen": _share(sides),
        "annotators": {
            name: _annotator_figures([j for j in judgements if j.annotator == name])
            for name in dict.fromkeys(judgement.annotator for judgement in judgements)
        },
        "agreement": agreement_of(chosen),
    }


def agreement_of(judgements: Sequence[Judgement]) -> dict[str, Any] | None:
    """How often two annotators of one pair choose the same answer: {"pairs", "rate", "ci"}, over all pairs of
    judgements of one pair by two annotators; None where there are none."""
    by_pair: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        if judgement.choice is not None:
            by_pair.setdefault(judgement.pair, []).append(judgement)
    same = [
        one.choice == other.choice
        for given in by_pair.values()
        for place, one in enumerate(given)
        for other in given[place + 1 :]
    ]
    return _share(same)


def _annotator_figures(judgements: Sequence[Judgement]) -> dict[str, Any]:
    seconds = sorted(judgement.seconds for judgement in judgements if judgement.seconds is not None)
    return {
        "judgements": sum(judgement.choice is not None for judgement in judgements),
        "skipped": sum(judgement.choice is None for judgement in judgements),
        "median_seconds": seconds[len(seconds) // 2] if seconds else None,
    }


def _shares(found: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    return {name: found.count(name) / len(found) for name in names} if found else {}


def _share(hits: Sequence[bool]) -> dict[str, Any] | None:
    if not hits:
        return None
    rate = sum(hits) / len(hits)
    return {"pairs": len(hits), "rate": rate, "ci": wilson(rate, len(hits)).ci}


def require_complete(store: Store, batch: str) -> None:
    """Raise InputError where a pair of the batch still wants a judgement."""
    progress = store.progress(batch)
    if progress.complete < progress.pairs:
        raise InputError(
            f"annotator: {progress.pairs - progress.complete} of {progress.pairs} pairs still want a judgement; those "
            f"that were given are in {store.path}: start the same command again to go on"
        )
