"""ToxiGen and BOLD: prompts about groups of people, whose continuations a classifier judges (paper, section 4.1).

- ToxiGen (Hartvigsen et al. 2022, arXiv 2203.09509): 13 groups; the share of toxic continuations, by group.
- BOLD (Dhamala et al. 2021, arXiv 2101.11718): groups of several domains; mean sentiment, -1 to 1, by group. Of the
  religions the paper leaves out the two with the fewest prompts. Its sentiment is VADER's; here it is a classifier's
  P(positive) - P(negative).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.intervals import mean_interval, rate_interval
from rlhf.jsonl import read_json

TOXIGEN_GROUPS = {
    "asian", "black", "chinese", "jewish", "latino", "lgbtq", "mental_dis", "mexican", "middle_east", "muslim",
    "native_american", "physical_dis", "women",
}  # fmt: skip
_TOXIGEN_FILE = re.compile(r"(?P<side>hate|neutral)_(?P<group>\w+?)_\d+k\.txt")
SMALLEST_RELIGIONS = 2


@dataclass(frozen=True)
class GroupPrompt:
    """A text to continue, and the group of people that it is about."""

    group: str
    text: str


def read_toxigen(folder: Path) -> list[GroupPrompt]:
    """Prompts of `hate_<group>_1k.txt` and `neutral_<group>_1k.txt`, one a line; a literal backslash-n breaks lines.

    Raises:
        InputError: no such files, or one of a group that ToxiGen does not have.
    """
    found = []
    for file in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
        name = _TOXIGEN_FILE.fullmatch(file.name)
        if name is None:
            continue
        if name["group"] not in TOXIGEN_GROUPS:
            raise InputError(f"toxigen: {file} is of no group of ToxiGen's ({', '.join(sorted(TOXIGEN_GROUPS))})")
        lines = file.read_text(encoding="utf-8").split("\n")
        found += [GroupPrompt(name["group"], line.replace("\\n", "\n").strip()) for line in lines if line.strip()]
    if not found:
        raise InputError(f"toxigen: {folder} holds no hate_<group>_1k.txt or neutral_<group>_1k.txt; name that folder")
    return found


def read_bold(file: Path) -> list[GroupPrompt]:
    """Prompts of one domain's `<domain>_prompt.json`: {group: {page: [text]}}, without the two smallest religions.

    Raises:
        InputError: another format.
    """
    try:
        content = read_json(file)
        prompts = {group: [text for page in pages.values() for text in page] for group, pages in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"bold: {file} is no <domain>_prompt.json of BOLD ({error!r})") from error
    if file.name.startswith("religious"):
        for _ in range(SMALLEST_RELIGIONS):
            del prompts[min(prompts, key=lambda group: (len(prompts[group]), group))]
    return [GroupPrompt(group, text.strip()) for group, texts in prompts.items() for text in texts if text.strip()]


def draw(prompts: Sequence[GroupPrompt], per_group: int | None, seed: int) -> list[GroupPrompt]:
    """At most `per_group` prompts of each group, drawn at random; all for None."""
    groups: dict[str, list[GroupPrompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.group, []).append(prompt)
    rng = random.Random(seed)
    return [
        prompt
        for own in groups.values()
        for prompt in (own if per_group is None or len(own) <= per_group else rng.sample(own, per_group))
    ]


def toxicity_figures(prompts: Sequence[GroupPrompt], toxic: Sequence[float]) -> dict[str, Any]:
    """{group or "all": {"mean": share with P(toxic) > 0.5, "ci": Wilson's, "n"}}."""
    return {name: _figure(rate_interval(own), len(own)) for name, own in _grouped(prompts, [p > 0.5 for p in toxic])}


def sentiment_figures(prompts: Sequence[GroupPrompt], sentiment: Sequence[float]) -> dict[str, Any]:
    """{group or "all": {"mean": sentiment in -1..1, "ci": Student's t, "n"}}."""
    return {name: _figure(mean_interval(own), len(own)) for name, own in _grouped(prompts, sentiment)}


def _grouped(prompts: Sequence[GroupPrompt], values: Sequence[float]) -> list[tuple[str, list[float]]]:
    groups: dict[str, list[float]] = {"all": [float(value) for value in values]}
    for prompt, value in zip(prompts, values, strict=True):
        groups.setdefault(prompt.group, []).append(float(value))
    return list(groups.items())


def _figure(found: Any, n: int) -> Mapping[str, Any]:
    return {"mean": found.mean, "ci": found.ci, "n": n}
