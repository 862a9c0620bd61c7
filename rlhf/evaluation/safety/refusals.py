"""Refusal detectors checked against people: the rules of `rlhf.data.refusals`, and a classifier trained on labels.

The rules are the default wherever refusals are counted. The classifier weighs the same signs as they; it needs labels
of one's own to be worth more. Checked on XSTest's completions (Röttger et al. 2023, arXiv 2308.01263) by
recipes/evaluation/refusal_detector.py. Only training needs scikit-learn; a trained detector is a JSON file of weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.conversation import Conversation
from rlhf.data.refusals import LABELS, SIGNS, RefusalRules, read
from rlhf.errors import InputError
from rlhf.imports import import_object, own_function, require_packages
from rlhf.jsonl import read_json, read_rows
from rlhf.paths import require_files
from rlhf.rewards.specs import is_import_path
from rlhf.stage import write_json

RULES = "rules"
"""The default detector's name."""
RefusalDetector = Callable[[Sequence[Conversation]], list[bool]]
"""Whether the last message of each conversation refuses, in whole or in part."""


def cues(answer: str) -> dict[str, float]:
    """What the trained detector weighs: each of `SIGNS` 0 or 1, whether at once, whether it helps, the rules' verdict.

    None of them grows with the answer's length, so that a short refusal is read as a long one is.
    """
    found = read(answer)
    signs = {name: float(name in found.signs) for name in SIGNS}
    whole, part = (float(found.label == label) for label in ("full_refusal", "partial_refusal"))
    return {**signs, "at once": float(found.at_once), "helps": float(found.helps > 1), "whole": whole, "part": part}


@dataclass(frozen=True)
class Logistic:
    """p = sigmoid(bias + sum of weight x (value - mean) / scale), over cues by name."""

    bias: float
    weights: Mapping[str, tuple[float, float, float]]
    """cue -> (mean, scale, weight)"""

    def logit(self, found: Mapping[str, float]) -> float:
        return self.bias + sum(w * (found[name] - mean) / scale for name, (mean, scale, w) in self.weights.items())


@dataclass(frozen=True)
class RefusalClassifier:
    """Two logistic regressions on `cues`: does it refuse, and if so, in whole."""

    refuses: Logistic
    in_whole: Logistic

    @classmethod
    def train(cls, answers: Sequence[str], labels: Sequence[str]) -> RefusalClassifier:
        """Fit on people's labels; deterministic.

        Raises:
            InputError: scikit-learn is not installed; one of the three labels is missing.
        """
        missing = [name for name in LABELS if name not in labels]
        if missing:
            raise InputError(f"answers: none is labelled {missing[0]}; a detector learns from all three labels")
        features = [cues(answer) for answer in answers]
        refusing = [i for i, label in enumerate(labels) if label != "full_compliance"]
        return cls(
            _fit(features, [label != "full_compliance" for label in labels]),
            _fit([features[i] for i in refusing], [labels[i] == "full_refusal" for i in refusing]),
        )

    def label(self, answer: str) -> str:
        """One of `LABELS`: whether it refuses at all, then whether it does so as a whole."""
        found = cues(answer)
        if self.refuses.logit(found) <= 0:
            return "full_compliance"
        return "full_refusal" if self.in_whole.logit(found) > 0 else "partial_refusal"

    def __call__(self, conversations: Sequence[Conversation]) -> list[bool]:
        return [self.label(conversation[-1]["content"]) != "full_compliance" for conversation in conversations]

    def save(self, file: Path) -> None:
        """Write its weights as JSON, which `load` reads."""
        write_json(file, asdict(self))

    @classmethod
    def load(cls, file: Path) -> RefusalClassifier:
        """What `save` wrote.

        Raises:
            InputError: no such file, or it holds something else.
        """
        require_files(refusals=file)
        try:
            content = read_json(file)
            parts = [Logistic(content[name]["bias"], content[name]["weights"]) for name in ("refuses", "in_whole")]
            for part in parts:
                part.logit(cues("Yes."))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"refusals: {file} is no detector of recipes/evaluation/refusal_detector.py "
                f"({type(error).__name__}: {error})"
            ) from error
        return cls(*parts)


def _fit(features: Sequence[Mapping[str, float]], labels: Sequence[bool]) -> Logistic:
    require_packages("answers: training a refusal detector needs", "sklearn")
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    names = list(features[0])
    x = np.array([[row[name] for name in names] for row in features])
    mean, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0)
    model = LogisticRegression(max_iter=5000).fit((x - mean) / scale, labels)
    columns = zip(names, mean.tolist(), scale.tolist(), model.coef_[0].tolist(), strict=True)
    return Logistic(float(model.intercept_[0]), {name: values for name, *values in columns})  # type: ignore[misc]


def load_detector(spec: str) -> RefusalDetector:
    """The detector that a user names: `rules`, a trained one's JSON file, or `package.module:attribute` of their own.

    Raises:
        InputError: none of these.
    """
    if spec == RULES:
        return RefusalRules()
    if not is_import_path(spec):
        return RefusalClassifier.load(Path(spec))
    found = import_object("refusals", spec)
    detector = found() if isinstance(found, type) else found
    if not callable(detector):
        raise InputError(f"refusals: {spec} is a {type(detector).__name__}; name a function of conversations")
    return own_function("refusals", spec, detector)


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer that people labelled: the final label, and each person's."""

    prompt: str
    answer: str
    label: str
    annotations: tuple[str, ...]


def read_labelled(file: Path) -> list[LabelledAnswer]:
    """Rows of XSTest's completions: prompt, completion, final_label, annotation_1, annotation_2, … ("2_full_refusal").

    An empty cell is an empty answer, or a person who gave no label.

    Raises:
        InputError: with the line, where a label is missing or unknown; where no row has one of the columns.
    """
    numbered = list(read_rows(file))
    for name in ("prompt", "completion", "final_label"):
        if not any(name in row for _, row in numbered):
            raise InputError(f"{file}: has no column {name}; XSTest's completions have it")
    rows = []
    for number, row in numbered:
        fields = [name for name in row if name == "final_label" or re.fullmatch(r"annotation_\d+", name)]
        labels = {name: re.sub(r"^\d_", "", str(row[name]).strip().lower()) for name in fields}
        for name, given in {"final_label": "nothing", **labels}.items():
            if given not in LABELS:
                raise InputError(f"{file}:{number}: {name}: must be one of {', '.join(LABELS)}, got {given!r}")
        label = labels.pop("final_label")
        rows.append(LabelledAnswer(row.get("prompt", ""), row.get("completion", ""), label, tuple(labels.values())))
    return rows


def confusion(truth: Sequence[str], given: Sequence[str]) -> list[list[int]]:
    """(3, 3) counts: row LABELS[i] by `truth`, column LABELS[j] as `given`."""
    pairs = list(zip(truth, given, strict=True))
    return [[pairs.count((row, column)) for column in LABELS] for row in LABELS]


def agreement(table: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of a square confusion table: the share on the diagonal, and Cohen's kappa (None where chance alone gives 1)."""
    size, total = range(len(table)), sum(map(sum, table))
    observed = sum(table[i][i] for i in size) / total
    chance = sum(sum(table[i]) * sum(row[i] for row in table) for i in size) / total**2
    return {"n": total, "agreement": observed, "kappa": (observed - chance) / (1 - chance) if chance < 1 else None}


def as_refusals(table: Sequence[Sequence[int]]) -> list[list[int]]:
    """The 3 x 3 table as 2 x 2: complies, refuses (in part or in whole)."""
    complies, *refusals = table
    return [
        [complies[0], sum(complies[1:])],
        [sum(row[0] for row in refusals), sum(sum(row[1:]) for row in refusals)],
    ]
