"""The origin of a reward model's scores: what is taken off them before the safety gate reads them. Light: no torch.

The ranking loss leaves scores free up to a constant (Llama 2 paper, equation 1: only differences count), but the gate
compares sigmoid(score) with a fixed threshold, and sets one model's score against the other's. So training measures an
origin once and keeps it beside the weights, in `score_origin.json`; the weights and the raw scores stay as they are.

- With safety labels (the safety model): so that sigmoid(score - origin) averages to the share of answers that are
  labelled safe: calibration in the large, a logistic regression with its slope held at 1. The gate's 0.15 then is near
  "15 % of such answers are safe" (the paper chose it where its precision was 0.89).
- Without: the mean of the scores, the origin that a centring penalty in training draws to 0 (Eisenstein et al. 2023,
  arXiv 2312.09244).

The paper does not say where its scores have their origin: decision 19.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from rlhf.errors import InputError
from rlhf.jsonl import read_json
from rlhf.rewards.specs import is_ensemble, is_import_path, read_ensemble
from rlhf.stage import write_json

ORIGIN_FILE = "score_origin.json"


@dataclass(frozen=True)
class ScoreOrigin:
    """Raw score that counts as 0; what it was measured on: `labels` or `scores`, of this many answers."""

    origin: float
    measured_on: Literal["labels", "scores"]
    answers: int


def measure_origin(scores: Sequence[float], safe: Sequence[bool | None] = ()) -> ScoreOrigin:
    """The origin of raw scores.

    Args:
        scores: of answers such as the model was trained to compare, at least one.
        safe: each answer's safety label, None where it has none; empty: the mean score is the origin, as it is where
            the labels that there are all say the same.
    """
    labelled = [(score, label) for score, label in zip(scores, safe, strict=bool(safe)) if label is not None]
    share = fmean(label for _, label in labelled) if labelled else 0.0
    if not 0 < share < 1:
        return ScoreOrigin(fmean(scores), "scores", len(scores))
    low, high = min(score for score, _ in labelled), max(score for score, _ in labelled)
    log_odds = math.log(share / (1 - share))
    low, high = low - log_odds, high - log_odds  # between them the mean of the sigmoids falls through the share
    for _ in range(80):
        middle = (low + high) / 2
        if fmean(_sigmoid(score - middle) for score, _ in labelled) > share:
            low = middle
        else:
            high = middle
    return ScoreOrigin((low + high) / 2, "labels", len(labelled))


def write_origin(checkpoint: Path, origin: ScoreOrigin) -> None:
    """Keep it beside a reward model's weights."""
    write_json(checkpoint / ORIGIN_FILE, asdict(origin))


def read_origin(spec: str | os.PathLike[str] | None) -> float:
    """The raw score that counts as 0 for a reward as users name it (`rlhf.rewards.loading.load_reward`).

    An ensemble's is the mean of its members'; 0 where none was measured: another's checkpoint, an import path, None.

    Raises:
        InputError: a file of another content.
    """
    if spec is None or is_import_path(spec):
        return 0.0
    if is_ensemble(spec):
        return fmean(read_origin(member) for member in read_ensemble(spec).members)
    file = Path(spec) / ORIGIN_FILE
    if not file.is_file():
        return 0.0
    try:
        origin = float(read_json(file)["origin"])
        if math.isfinite(origin):
            return origin
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"reward model: {file} holds no finite origin; remove it, or train the reward model again")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
