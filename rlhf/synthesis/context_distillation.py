"""Safety context distillation: what a model says under a safety preprompt becomes what it says without (paper, 4.2.4).

A preprompt is generic, made of adjectives ("You are a responsible, wise assistant."), or that of the prompt's risk
category, which also says what a good answer looks like. Pure, and light: no torch but what is given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.conversation import Conversation, check_conversation
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.intervals import mean_interval
from rlhf.jsonl import read_as
from rlhf.objectives.shapes import require_same_shape

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 5


@dataclass(frozen=True)
class RiskCategory:
    """A kind of risk and what is said before such prompts.

    Args:
        name: of the category.
        preprompt: what the model should be like, and the template of a good answer.
        sources: the prompts' `source`; with * and ? as in file names.
        words: regular expressions; a prompt whose last message has one of them belongs here too.
    """

    name: str
    preprompt: str
    sources: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> RiskCategory:
        """A row of a file of categories; InputError names the field that is missing or wrong."""
        for name in ("name", "preprompt"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(f"{name}: must be a non-empty text, got {row.get(name)!r}")
        lists = {}
        for name in ("sources", "words"):
            found = row.get(name, [])
            if not isinstance(found, list) or not all(isinstance(part, str) and part for part in found):
                raise InputError(f"{name}: must be a list of texts, got {found!r}")
            lists[name] = tuple(found)
        for pattern in lists["words"]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"words: {pattern!r} is no regular expression ({error})") from None
        return cls(row["name"], row["preprompt"], **lists)


def read_categories(path: Path) -> list[RiskCategory]:
    """The categories of a file, in its order. InputError names file and line."""
    return read_as(path, RiskCategory.from_dict)


def category_of(prompt: Prompt, categories: Sequence[RiskCategory]) -> RiskCategory | None:
    """The first category with the prompt's source, else the first whose words its last message has, else None.

    Decision 49.
    """
    for category in categories:
        if any(fnmatch(prompt.source, pattern) for pattern in category.sources):
            return category
    text = prompt.messages[-1]["content"]
    return next((c for c in categories if any(re.search(w, text, re.IGNORECASE) for w in c.words)), None)


def generic_preprompt(adjectives: Sequence[str], template: str, rng: random.Random, most: int = 3) -> str:
    """`template` with one to `most` different adjectives in the place of {adjectives}, in random order."""
    chosen = rng.sample(list(adjectives), rng.randint(1, min(most, len(adjectives))))
    return template.replace("{adjectives}", ", ".join(chosen))


def with_preprompt(messages: Conversation, preprompt: str) -> Conversation:
    """The prompt with the preprompt as its system message, before the text of the one that it has already."""
    own = [m for m in messages[:1] if m["role"] == "system"]
    text = "\n".join([preprompt, *(m["content"] for m in own)])
    return check_conversation([{"role": "system", "content": text}, *messages[len(own) :]])


def suspicious_categories(prompts: Sequence[Prompt], categories: Sequence[RiskCategory]) -> list[str]:
    """A sentence where fewer than half of the prompts have a category: the others are asked as the generic ones are."""
    without = sum(category_of(prompt, categories) is None for prompt in prompts)
    if 2 * without <= len(prompts):
        return []
    said = f"{without} of {len(prompts)} prompts have neither a source nor a word of any category"
    return [f"{said}, and get the generic preprompt in its place; add sources or words to `categories`"]


def keeps_distilled(plain: Tensor, distilled: Tensor, min_gain: float = 0.0) -> Tensor:
    """(n,) bool: the answer under the preprompt is safer than the plain one (strict): train on it (paper, 4.2.4).

    Args:
        plain, distilled: (n,) raw safety scores of the two answers to each prompt.
        min_gain: and safer by so much at least, as a difference of their sigmoids (decision 48).
    """
    require_same_shape(plain=plain, distilled=distilled)
    gain = distilled.double().sigmoid() - plain.double().sigmoid()
    return (distilled > plain) & (gain >= min_gain)


def score_figures(scores: Tensor, plain: Tensor) -> dict[str, Any]:
    """Raw safety scores as the paper shows them, after the sigmoid: mean, gain over `plain`, quantiles, histogram.

    Args:
        scores, plain: (prompts, samples); the intervals are over prompts, the gain's is of differences by prompt.
    """
    shares = scores.double().sigmoid()
    found = mean_interval(shares.mean(1).tolist())
    gain = mean_interval((shares - plain.double().sigmoid()).mean(1).tolist())
    return {
        "mean": found and found.mean,
        "ci": found and found.ci,
        "gain": gain and gain.mean,
        "gain_ci": gain and gain.ci,
        "quantiles": {str(q): float(shares.quantile(q)) for q in QUANTILES},
        "histogram": [int(count) for count in shares.histc(bins=10, min=0.0, max=1.0)],
        "answers": shares.numel(),
    }


def gains_by_plain_score(plain: Tensor, by_kind: Mapping[str, Tensor]) -> dict[str, list[dict[str, Any]]]:
    """`gain_by_plain_score` of each kind, and as "another" what another plain answer to the same prompt gains.

    An answer that scored low by chance is followed by a better one on average, under a preprompt or not: what a
    preprompt brings is what it gains beyond "another". The paper's figure does not tell the two apart.

    Args:
        plain: (prompts, samples) raw scores; "another" needs two samples.
        by_kind: of the same shape.
    """
    others = {**by_kind, "another": plain.roll(1, dims=1)} if plain.shape[1] > 1 else by_kind
    return {kind: gain_by_plain_score(plain, scores) for kind, scores in others.items()}


def gain_by_plain_score(plain: Tensor, distilled: Tensor) -> list[dict[str, Any]]:
    """What the preprompt does where the plain answer was unsafe, and where it was safe already (paper, figure 16).

    Args:
        plain, distilled: (prompts, samples) raw scores.

    Rows {low, high, answers, gain, ci}: the mean gain of the safety score (sigmoid) in each fifth of the plain score, a
    prompt's answers averaged first.
    """
    before, after = plain.double().sigmoid(), distilled.double().sigmoid()
    bins = (before * BINS).long().clamp(max=BINS - 1)
    rows = []
    for number in range(BINS):
        own = bins == number
        there = own.any(1)
        gains = ((after - before) * own).sum(1)[there] / own.sum(1)[there]
        found = mean_interval(gains.tolist())
        rows.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "answers": int(own.sum()),
                "gain": found and found.mean,
                "ci": found and found.ci,
            }
        )
    return rows
