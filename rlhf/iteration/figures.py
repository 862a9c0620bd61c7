"""The shape of `summary.json`, as every reader of a run's figures may count on it. Light: no torch.

What its parts hold beyond that is said where it is measured: `rlhf.evaluation.policies.versions.VersionFigures` and
`rlhf.rewards.training.accuracy.SummarisedReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Version(TypedDict):
    """What every entry of "versions" has; null where nothing measured it, intervals are [low, high] of 95 %."""

    name: str
    gold_helpfulness: float | None
    gold_helpfulness_ci: list[float] | None
    gold_safety: float | None
    gold_safety_ci: list[float] | None
    violation_rate: float | None
    false_refusal_rate: float | None
    win_rate_vs_sft: float | None
    kl_from_sft: float | None
    mean_length: float | None


class RewardModelFigures(TypedDict):
    """What every entry of "reward_models" has: held-out accuracy; version is null for the referee."""

    version: str | None
    domain: str
    accuracy: float | None
    accuracy_by_strength: dict[str, float | None]
    pairs: int
    pairs_by_strength: dict[str, int]


class _Measured(TypedDict):
    seconds: float
    versions: Sequence[Version]
    reward_models: Sequence[RewardModelFigures]
    suspicious: dict[str, list[str]]


class Summary(_Measured, total=False):
    """The content of summary.json.

    seconds: wall time of all attempts together. versions: one entry an evaluation in the plan's order: the start's, v1,
    ..., vN, vN_ppo. reward_models: one a version and domain. suspicious: stage -> the sentences of its closing block,
    of those that have some. referee, branches, students: where there are any; these evaluations are as the versions'.
    """

    referee: RewardModelFigures
    branches: Sequence[Version]
    students: Sequence[Version]
