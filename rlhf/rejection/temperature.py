"""What a temperature sweep measured, and the best temperature for the next round (Llama 2 paper, section 3.2.3).

The paper re-tunes the temperature in every round, because the best one rises with the versions (figure 8).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlhf.data.rows import Completion, Prompt
from rlhf.errors import InputError
from rlhf.intervals import mean_interval
from rlhf.rejection.selection import SelectionConfig


def sweep_figures(
    drawn: Mapping[float, Sequence[Completion]],
    prompts: Sequence[Prompt],
    num_samples: int,
    best_of: int,
    groups: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The content of sweep.json, plain JSON types.

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
    temperatures = []
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


def _figures(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean over prompts and its interval; None where there is no prompt."""
    found = mean_interval(values)
    return None if found is None else {"mean": found.mean, "ci": found.ci}


def read_best_temperature(path: str | os.PathLike[str]) -> float:
    """The best temperature of a sweep.json; InputError where the file is not one."""
    try:
        with open(path, encoding="utf-8") as stream:
            temperature = json.load(stream)["best"]["temperature"]
        if math.isfinite(temperature) and temperature > 0:
            return float(temperature)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"temperature_from: {path} is no sweep.json of recipes/studies/temperature_sweep.py; name one, or none"
    )
