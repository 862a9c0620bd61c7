"""The answers that the page's script searches: all first answers of all versions, as data within the page.

The script (templates/search.js) is the only one that the page lets run: its policy names the script's digest, and texts
of models and data are no part of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlhf.report.drawing.page import TEMPLATES
from rlhf.report.drawing.text import in_a_sentence, version_label
from rlhf.report.run.samples import MARKS, Row, change_of, first_reward, kind_of, marks_of, scores_of

MOST_PROMPTS = 10_000


@dataclass(frozen=True)
class Search:
    """What the template needs.

    Args:
        versions: labels, the first version first; `last` is the place of the last one, behind which branches stand.
        kinds: of prompts, to filter by.
        marks: what an answer is suspected of, to filter by; those that occur.
        first: what the versions are compared with.
        rewards: whether any answer has a reward.
    changes: whether any version's change against the first is known, to sort by.
        prompts: how many there are; left_out: those beyond MOST_PROMPTS.
        data: JSON, deflated (zlib) and in base64: it takes a third of the room, and nothing in it is markup.
        script: what searches them.
    """

    versions: list[str]
    last: int
    kinds: list[str]
    marks: list[tuple[int, str]]
    first: str
    rewards: bool
    changes: bool
    prompts: int
    left_out: int
    data: str
    script: Markup


def make_search(
    answers: Mapping[str, Sequence[Row]], beside: Mapping[str, Sequence[Row]] | None = None
) -> Search | None:
    """From version name -> rows of answers.jsonl, versions in order, and the same of branches, which stand behind them.

    None where no version has answers.
    """
    versions = [name for name, rows in answers.items() if rows]
    everything = {name: rows for name, rows in [*answers.items(), *(beside or {}).items()] if rows}
    names = list(everything)
    firsts = {
        name: {str(r["prompt_id"]): r for r in rows if r.get("index", 0) == 0} for name, rows in everything.items()
    }
    order = list(dict.fromkeys(prompt for rows in firsts.values() for prompt in rows))
    kept = order[:MOST_PROMPTS]
    if not kept or not versions:
        return None
    shown = {prompt: next(rows[prompt] for rows in firsts.values() if prompt in rows) for prompt in kept}
    found = {name: [_answer(rows.get(p), firsts[names[0]].get(p)) for p in kept] for name, rows in firsts.items()}
    scores = list(dict.fromkeys(score for own in found.values() for a in own if a for score in a.scores))
    seen = {mark for own in found.values() for a in own if a for mark in a.marks}
    data = {
        "versions": [version_label(name) for name in names],
        "scores": scores,
        "marks": list(MARKS),
        "prompts": [_prompt(prompt, shown[prompt]) for prompt in kept],
        "answers": [[None if a is None else a.packed(scores) for a in own] for own in found.values()],
    }
    return Search(
        versions=[version_label(name) for name in names],
        last=len(versions) - 1,
        kinds=sorted({kind_of(row) for row in shown.values()}),
        marks=[(i, mark) for i, mark in enumerate(MARKS) if mark in seen],
        first=in_a_sentence(names[0]),
        rewards="reward" in scores,
        changes=any(a.change is not None for own in found.values() for a in own if a),
        prompts=len(kept),
        left_out=len(order) - len(kept),
        data=base64.b64encode(zlib.compress(json.dumps(data, separators=(",", ":")).encode())).decode(),
        script=Markup(search_script()),
    )


def search_script() -> str:
    """What searches."""
    return (TEMPLATES / "search.js").read_text(encoding="utf-8")


def script_source() -> str:
    """The script as a content security policy names it: by its digest."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(search_script().encode()).digest()).decode()}'"


def policy(scripts: str = "'none'") -> str:
    """The page's content security policy: nothing from elsewhere, and these scripts alone."""
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {scripts}; base-uri 'none'; "
        "form-action 'none'"
    )


@dataclass(frozen=True)
class _Answer:
    text: str
    scores: dict[str, float]
    marks: list[str]
    change: tuple[float, str] | None
    first_reward: float | None

    def packed(self, scores: Sequence[str]) -> list[object]:
        """[text, score by name, marks as bits, change, what changed, the first version's reward by the same models]."""
        bits = sum(1 << i for i, mark in enumerate(MARKS) if mark in self.marks)
        change, of = self.change or (None, None)
        return [self.text, [self.scores.get(name) for name in scores], bits, change, of, self.first_reward]


def _answer(row: Row | None, first: Row | None) -> _Answer | None:
    if row is None:
        return None
    change = None if first is None or first is row else change_of(first, row)
    scores = {name: round(value, digits) if digits else round(value) for name, value, digits in scores_of(row)}
    change = None if change is None else (round(change[0], 4), change[1])
    beside = first_reward(row)
    return _Answer(
        str(row.get("answer", "")), scores, marks_of(row), change, None if beside is None else round(beside, 2)
    )


def _prompt(prompt: str, row: Row) -> list[object]:
    messages = row["messages"]
    history = [[str(turn.get("role")), str(turn.get("content"))] for turn in messages[:-1]]
    return [prompt, kind_of(row), history, str(messages[-1]["content"])]
