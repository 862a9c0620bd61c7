"""What a temperature sweep measured, and the best temperature for the next round (Llama 2 paper, section 3.2.3).

The paper re-tunes the temperature in every round, because the best one rises with the versions (figure 8).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, TypedDict

from rlhf.data.rows import Completion, Prompt
from rlhf.errors import InputError
from rlhf.intervals import mean_interval
from rlhf.jsonl import read_json
from rlhf.rejection.figures import TooLongCounts
from rlhf.rejection.selection import SelectionConfig

if TYPE_CHECKING:
    from rlhf.rejection.curves import BestTemperature, CurvePoint


class Mean(TypedDict):
    """A mean over prompts and its 95 % interval, [low, high]; that is None for one prompt."""

    mean: float
    ci: list[float] | None


class TemperatureFigures(TypedDict):
    """One temperature of a sweep. self_bleu: by group of prompts, None for a group without any."""

    temperature: float
    curve: list[CurvePoint]
    self_bleu: dict[str, Mean | None]
    length: Mean | None
    finished_share: float


class SweepFigures(TypedDict):
    """Of a sweep over temperatures. groups: name -> how many of the prompts belong to it."""

    prompts: int
    num_samples: int
    best_of: int
    reward_model: str
    groups: dict[str, int]
    temperatures: list[TemperatureFigures]
    best: BestTemperature


class Sweep(SweepFigures):
    """The content of sweep.json."""

    too_long: TooLongCounts


def sweep_figures(
    drawn: Mapping[float, Sequence[Completion]],
    prompts: Sequence[Prompt],
    num_samples: int,
    best_of: int,
    groups: Mapping[str, Sequence[str]],
) -> SweepFigures:
    """What was measured.

    Args:
        drawn: temperature -> scored answers, prompt after prompt, `num_samples` (K) of each.
        prompts: in that order.
        best_of: k of the next round, 1..K; the best temperature is the one whose expected best of k is highest.
        groups: name -> sources of the prompts whose Self-BLEU is measured together.

    Rejection sampling cannot choose an answer that is empty or did not come to its end, so here it counts with the
    lowest reward of the whole sweep.
    """
    import torch

    from rlhf.objectives.best_of_n import expected_max
    from rlhf.rejection.curves import best_temperature, reward_curve
    from rlhf.rejection.diversity import self_bleu

    lowest = min(row.reward for rows in drawn.values() for row in rows)
    keeps = SelectionConfig().keeps
    maxima: dict[float, list[float]] = {}
    temperatures: list[TemperatureFigures] = []
    for temperature in sorted(drawn):
        every = drawn[temperature]
        by_prompt = [every[i : i + num_samples] for i in range(0, len(every), num_samples)]
        texts = [[row.text for row in rows] for rows in by_prompt]
        rewards = torch.tensor([[row.reward if keeps(row) else lowest for row in rows] for rows in by_prompt])
        maxima[temperature] = expected_max(rewards, best_of).tolist()
        alike = {
            name: [self_bleu(own) for prompt, own in zip(prompts, texts, strict=True) if prompt.source in sources]
            for name, sources in groups.items()
        }
        temperatures.append(
            {
                "temperature": temperature,
                "curve": reward_curve(rewards, texts),
                "self_bleu": {name: _figures(values) for name, values in alike.items()},
                "length": _figures([fmean(len(row.token_ids) for row in rows) for rows in by_prompt]),
                "finished_share": fmean(row.finished for row in every),
            }
        )
    return {
        "prompts": len(prompts),
        "num_samples": num_samples,
        "best_of": best_of,
        "reward_model": next(iter(drawn.values()))[0].reward_model,
        "groups": {name: sum(prompt.source in sources for prompt in prompts) for name, sources in groups.items()},
        "temperatures": temperatures,
        "best": best_temperature(maxima),
    }


def _figures(values: Sequence[float]) -> Mean | None:
    """Mean over prompts and its interval; None where there is no prompt."""
    found = mean_interval(values)
    return None if found is None else {"mean": found.mean, "ci": found.ci}


def read_best_temperature(path: str | os.PathLike[str]) -> float:
    """The best temperature of a sweep.json; InputError where the file is not one."""
    try:
        temperature = read_json(path)["best"]["temperature"]
        if math.isfinite(temperature) and temperature > 0:
            return float(temperature)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"temperature_from: {path} is no sweep.json of recipes/studies/temperature_sweep.py; name one, or none"
    )
