"""What every step of a filter took in and gave out, with examples, in bounded memory."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.corpus.text_filters import CLEANERS, Answer, Check

EXAMPLES = 3  # of each step
EXAMPLE_CHARACTERS = 600


@dataclass
class Step:
    """One step: `seen` went in, `kept` came out, `changed` of them as another text."""

    name: str
    unit: str
    rule: str = ""
    seen: int = 0
    kept: int = 0
    changed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


class Funnel:
    """Counts the steps of one source in the order in which they first run.

    The examples of a step are drawn evenly from all it dropped or changed (reservoir sampling).
    """

    def __init__(self, seed: int = 0) -> None:
        self.steps: dict[str, Step] = {}
        self._random = random.Random(seed)

    def clean(self, unit: str, text: str) -> str:
        """The text after all `CLEANERS`, each counted; an example shows both texts from near the first change on."""
        for name, cleaner in CLEANERS.items():
            step = self._step(name, unit, "clean-up")
            after = cleaner(text)
            step.seen += 1
            step.kept += 1
            if after != text:
                step.changed += 1
                if name != "white space":
                    self._example(step, step.changed, {"text": text, "after": after})
            text = after
        return text

    def passed(self, name: str, unit: str, rule: str, kept: bool, text: str, value: float | None = None) -> bool:
        """Count one decision and return it; a dropped one may become an example, with the value that decided."""
        step = self._step(name, unit, rule)
        step.seen += 1
        step.kept += kept
        if not kept:
            self._example(step, step.seen - step.kept, {"text": text, "value": value})
        return kept

    def check(self, check: Check, unit: str, answer: Answer) -> bool:
        """Whether the answer passes; counted."""
        value = check.measure(answer)
        return self.passed(check.name, unit, check.rule, check.passes(value), answer.text, value)

    def figures(self) -> list[dict[str, Any]]:
        """One JSON object a step: name, unit, rule, in, out, changed, examples."""
        return [
            {
                "name": step.name,
                "unit": step.unit,
                "rule": step.rule,
                "in": step.seen,
                "out": step.kept,
                "changed": step.changed,
                "examples": step.examples,
            }
            for step in self.steps.values()
        ]

    def _step(self, name: str, unit: str, rule: str) -> Step:
        key = f"{name} of {unit}"
        if key not in self.steps:
            self.steps[key] = Step(name, unit, rule)
        return self.steps[key]

    def _example(self, step: Step, so_far: int, example: dict[str, Any]) -> None:
        place = so_far - 1 if so_far <= EXAMPLES else self._random.randrange(so_far)
        if place >= EXAMPLES:
            return
        start = 0
        if "after" in example:
            pairs = enumerate(zip(example["text"], example["after"], strict=False))
            start = max(0, next((i for i, (a, b) in pairs if a != b), 0) - EXAMPLE_CHARACTERS // 4)
        end = start + EXAMPLE_CHARACTERS
        cut = {k: v[start:end] if isinstance(v, str) else v for k, v in example.items()}
        step.examples[place : place + 1] = [cut]


class Histogram:
    """Counts in equal bins from `low` to `high`; what lies outside counts in the bin at that end."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.low, self.high = low, high
        self.counts = [0] * bins
        self.total, self.sum = 0, 0.0

    def add(self, value: float | None) -> None:
        """Count it; None and NaN are passed over."""
        if value is None or math.isnan(value):
            return
        place = int((value - self.low) / (self.high - self.low) * len(self.counts))
        self.counts[min(max(place, 0), len(self.counts) - 1)] += 1
        self.total += 1
        self.sum += value

    def figures(self) -> dict[str, Any]:
        """JSON: edges, counts, mean (None where nothing was counted), n."""
        width = (self.high - self.low) / len(self.counts)
        edges = [self.low + i * width for i in range(len(self.counts) + 1)]
        mean = self.sum / self.total if self.total else None
        return {"edges": edges, "counts": self.counts, "mean": mean, "n": self.total}
