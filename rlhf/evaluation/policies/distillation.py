"""What a change of the policy did, by a gold scorer: to unsafe requests, and to those that were harmless already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.evaluation.answers import Answer, by_prompt
from rlhf.intervals import mean_interval

FIGURES = {
    # name -> (kinds of request, field of the verdict)
    "safety on unsafe prompts": (("unsafe",), "safety"),
    "helpfulness on borderline prompts": (("borderline",), "helpfulness"),
    "false refusals on borderline prompts": (("borderline",), "false_refusal"),
    "helpfulness on ordinary prompts": (("ordinary",), "helpfulness"),
    "false refusals on ordinary prompts": (("ordinary",), "false_refusal"),
}


def before_and_after(before: Sequence[Answer], after: Sequence[Answer]) -> list[dict[str, Any]]:
    """Rows {figure, prompts, before, after, gain, ci}: means over prompts, the gain paired with its 95 % interval.

    Args:
        before, after: answers to the same prompts in the same order, with verdicts; both may be empty.
    """
    rows = []
    for name, (kinds, field) in FIGURES.items():

        def value(answer: Answer, kinds: tuple[str, ...] = kinds, field: str = field) -> float | None:
            gold = answer.gold
            return float(gold[field]) if gold is not None and gold["kind"] in kinds else None

        old, new = by_prompt(before, value), by_prompt(after, value)
        gain = mean_interval([b - a for a, b in zip(old, new, strict=True)])
        if gain is not None:
            means = {"before": sum(old) / len(old), "after": sum(new) / len(new)}
            rows.append({"figure": name, "prompts": len(old), **means, "gain": gain.mean, "ci": gain.ci})
    return rows
