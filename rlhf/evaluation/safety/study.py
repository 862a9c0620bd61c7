"""The shape of a safety study's study.json, which `rlhf.studies.safety_study` writes. Light: no torch."""

from __future__ import annotations

from typing import TypedDict


class OverSeeds(TypedDict):
    """A figure's mean over the seeds with Student's t interval, and what changed, seed by seed.

    values: one a seed. gain: against the first part. step: against the part before.
    """

    mean: float | None
    ci: list[float] | None
    values: list[float]
    gain: float | None
    gain_ci: list[float] | None
    step: float | None
    step_ci: list[float] | None


class Part(TypedDict):
    """One share of the safety data. figures: of STUDIED, those that were measured. histogram: of safety scores on
    unsafe prompts, summed over the seeds.
    """

    fraction: float
    figures: dict[str, OverSeeds]
    histogram: list[int] | None


class SafetyStudy(TypedDict):
    """The content of study.json."""

    seeds: int
    parts: list[Part]
