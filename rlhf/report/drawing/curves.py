"""Reward curves over k, the number of answers drawn (`rlhf.rejection.curves`): the points shown, and the KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf.report.drawing.figures import INK, Panel, Series, lines, ramp

if TYPE_CHECKING:
    from rlhf.rejection.curves import CurvePoint


def kl_panel(curves: Mapping[str, Sequence[CurvePoint]]) -> Panel | None:
    """What choosing the best of k costs: each reward curve's estimate by its name, and the bound for all."""
    series = []
    for i, (name, curve) in enumerate(curves.items()):
        points = doublings([point for point in curve if point.get("kl_estimate") is not None])
        ks = [point["k"] for point in points]
        series.append(Series(name, ramp(i, len(curves)), ks, [point["kl_estimate"] for point in points]))
    longest = max((doublings(curve) for curve in curves.values()), key=len, default=[])
    bounds = [point.get("kl_bound") for point in longest]
    series.append(Series("bound", INK, [point["k"] for point in longest], bounds, dashed=True, markers=False))
    note = "Nats from the policy that was sampled; the bound is log k - (k - 1)/k."
    return lines("KL of the best of k", series, log2=True, x_label="samples per prompt, k", note=note)


def doublings(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points at k = 1, 2, 4, .. and the last."""
    return [p for p in curve if p["k"] & (p["k"] - 1) == 0 or p["k"] == curve[-1]["k"]]
