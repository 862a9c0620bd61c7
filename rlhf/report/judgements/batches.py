"""The batches of preferences that a run collected: who judged, and how far others agree with them.

Of the newest reward models agreement falls as the policy moves away from what they were trained on, which is why the
paper collects fresh batches (section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rlhf.data.rows import Domain
from rlhf.report.drawing.figures import BLUE, GREY, ORANGE, Panel, Series, lines
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import interval, percent, version_label

NAMED = 3  # annotators whose names are shown


@dataclass(frozen=True)
class Batch:
    """One batch: the version that it was collected for, and its figures (`rlhf.annotation.labelling.batch_figures`)."""

    version: str
    figures: Mapping[str, Any]

    def rewards(self, domain: Domain) -> Mapping[str, Any] | None:
        """Agreement of the domain's newest reward model; None where there was none yet."""
        found: Mapping[str, Any] | None = (self.figures.get("agreement_with_rewards") or {}).get(domain)
        return found


def batch_table(batches: Sequence[Batch]) -> Table | None:
    """A row a batch; None where there is none."""
    if not batches:
        return None
    heads = [
        ("Batch", "the version that it was collected for"),
        ("Pairs", "of two answers that differ"),
        ("Choices", "judgements that prefer an answer"),
        ("Judged by", ""),
        ("Skipped", "judgements without a choice"),
        ("Significantly", "share of the choices that are significantly better, the strongest of the scale"),
        ("Safe alone", "share of the choices, both labelled, whose answer is safe and the other one is not"),
        ("Left", "choices of the left answer; far from a half, somebody looks at one side only"),
        ("Annotators agree", "two annotators of one pair choose the same answer"),
        *((f"{domain.capitalize()} model", "the newest reward model prefers the same answer") for domain in DOMAINS),
    ]
    rows = []
    for batch in batches:
        own = batch.figures
        shares = [own.get("left_chosen"), own.get("agreement")]
        rewards = [batch.rewards(domain) for domain in DOMAINS]
        rows.append(
            [
                Cell(version_label(batch.version)),
                Cell(str(own["pairs"])),
                Cell(str(own["judgements"])),
                Cell(_names(own["annotators"])),
                Cell(str(sum(own["skipped"].values()))),
                Cell(percent(own["strengths"].get("significantly"))),
                Cell(percent(own["safety"].get("chosen_safe_only"))),
                *(_cell(found, "rate") for found in shares),
                *(_cell(found, "accuracy") for found in rewards),
            ]
        )
    return Table(heads, rows)


def batch_panels(batches: Sequence[Batch]) -> list[Panel]:
    """Agreement with the annotators, batch by batch; none where nobody's was measured."""
    x = range(len(batches))
    found = {
        f"{domain} model": [(own["accuracy"], own.get("ci")) if (own := b.rewards(domain)) else None for b in batches]
        for domain in DOMAINS
    }
    found["a second annotator"] = [
        (own["rate"], own.get("ci")) if (own := b.figures.get("agreement")) else None for b in batches
    ]
    series = [
        Series(label, colour, x, [p and p[0] for p in points], [p and p[1] for p in points])
        for (label, points), colour in zip(found.items(), (BLUE, ORANGE, GREY), strict=True)
    ]
    panel = lines(
        "Who agrees with the annotators",
        series,
        names=[version_label(batch.version) for batch in batches],
        percent=True,
        reference=0.5,
        note="The newest reward models before each batch; a fall means that they no longer know the policy's answers.",
    )
    return [] if panel is None else [panel]


DOMAINS: tuple[Domain, ...] = get_args(Domain)


def _names(annotators: Mapping[str, Any]) -> str:
    names = list(annotators)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _cell(found: Mapping[str, Any] | None, name: str) -> Cell:
    return Cell(percent(found[name]), interval(found.get("ci"), 1, share=True)) if found else Cell(percent(None))
