"""95 % intervals: for a mean the t interval, for a rate Wilson's.

The unit is the prompt: several answers to one prompt are not independent, so callers average them first. Both intervals
are closed formulas: no seed, the same numbers on every machine. Light: no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; low and high are None where one value alone says nothing about its spread."""

    mean: float
    low: float | None
    high: float | None

    @property
    def ci(self) -> list[float] | None:
        """[low, high], or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else the Cornish-Fisher expansion.

    The expansion (Abramowitz & Stegun, 26.7.5) is within 0.5 % from 3 degrees on and 0.01 % from 10 on.
    """
    if degrees < 1:
        raise ValueError(f"degrees: must be at least 1, got {degrees}")
    if degrees == 1:
        return math.tan(0.475 * math.pi)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    z, v = Z95, degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    tail: float = sum(term / v**power for power, term in enumerate(terms, start=1))
    return z + tail


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Mean of independent values with its t interval, mean +- t(n-1) s / sqrt(n); None for no values."""
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def intercept_interval(x: Sequence[float], y: Sequence[float]) -> Interval | None:
    """What y is at x = 0, by least squares of y = a + b x: a with its t interval; None for no values.

    Ordinary least squares, n - 2 degrees of freedom; the independent pairs are the unit. Where all x are 0 it is the
    mean of y; where all are one other number, or there are fewer than three pairs, a has no interval (and where no
    line can be drawn through 0, there is none: None).
    """
    n = len(y)
    if n != len(x):
        raise ValueError(f"x, y: must be as many, got {n} and {len(x)}")
    if not any(x):
        return mean_interval(y)
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    if spread == 0:
        return None
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    if n < 3:
        return Interval(intercept, None, None)
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / (n - 2)
    half = t_quantile(n - 2) * math.sqrt(residual * (1 / n + mean_x**2 / spread))
    return Interval(intercept, intercept - half, intercept + half)


def rate_interval(values: Sequence[float]) -> Interval | None:
    """Mean of independent values in [0, 1] with Wilson's interval for a rate over as many trials; None for no values.

    Exact in meaning for 0/1 values. Values between (a tie counted half, a prompt's mean over several answers) spread
    less than 0/1 values of the same mean, so that the interval is then on the safe side.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if not values:
        return None
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("rate_interval: values must lie in [0, 1]")
    return wilson(fmean(values), len(values))


def wilson(rate: float, n: int) -> Interval:
    """Wilson's interval for a rate over n >= 1 trials."""
    shrink = 1 / (1 + Z95**2 / n)
    centre = (rate + Z95**2 / (2 * n)) * shrink
    half = Z95 * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n * n)) * shrink
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)))  # rounding
