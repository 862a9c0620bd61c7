"""Which answers the report shows: picked by a rule from how much their score changed, not by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlhf.report.drawing.text import NBSP, number

Row = Mapping[str, Any]
RULE = (
    "Within each kind of prompt, the prompts are sorted by how much the score of the first answer changed from "
    "{first} to {last}; shown are the largest rise, the median and the largest fall (equal ones by their id)."
)


@dataclass(frozen=True)
class Shown:
    """One version's answer with what its judges said, as short texts; `marks` are what went wrong."""

    version: str
    text: str
    scores: list[str]
    marks: list[str]


@dataclass(frozen=True)
class Sample:
    """One prompt with every version's and branch's first answer.

    Args:
        place: "largest rise", "median" or "largest fall".
        change: of the score that the kind of prompt is judged by, from the first version to the last.
        history: the turns before the question.
    """

    place: str
    change: float
    history: list[Row]
    question: str
    answers: list[Shown]


@dataclass(frozen=True)
class Group:
    """The samples of one kind of prompt, and the score that sorted them."""

    kind: str
    score: str
    samples: list[Sample]


def pick_samples(
    answers: Mapping[str, Sequence[Row]], beside: Mapping[str, Sequence[Row]] | None = None
) -> list[Group]:
    """Groups of samples from version name -> rows of answers.jsonl, versions in order; empty with fewer than two.

    `beside` are branches, whose answers stand behind the versions' and pick nothing.

    With gold verdicts the kinds are ordinary, borderline (judged by gold helpfulness) and unsafe requests (by gold
    safety); without, the prompts' domains, judged by the gated reward of the last version's reward models.
    """
    names = [name for name, rows in answers.items() if rows]
    if len(names) < 2:
        return []
    firsts = {name: {str(r["prompt_id"]): r for r in answers[name] if r.get("index", 0) == 0} for name in names}
    branches = {
        name: {str(r["prompt_id"]): r for r in rows if r.get("index", 0) == 0} for name, rows in (beside or {}).items()
    }
    before, after = firsts[names[0]], firsts[names[-1]]
    common = [prompt for prompt in after if all(prompt in rows for rows in firsts.values())]
    gold = all(before[p].get("gold") and after[p].get("gold") for p in common)
    groups = []
    for kind, score, change in _kinds(gold):
        changes = {p: change(before[p], after[p]) for p in common if _kind_of(after[p], gold) == kind}
        ordered = sorted((-value, prompt) for prompt, value in changes.items() if value is not None)
        samples = [
            _sample(
                place,
                -ordered[at][0],
                [(name, own[prompt]) for name, own in [*firsts.items(), *branches.items()] if prompt in own],
            )
            for place, at in _places(len(ordered))
            for prompt in [ordered[at][1]]
        ]
        if samples:
            groups.append(Group(kind, score, samples))
    return groups


def _kinds(gold: bool) -> list[tuple[str, str, Callable[[Row, Row], float | None]]]:
    if not gold:
        return [(kind, "reward", _reward_change) for kind in ("helpfulness", "safety")]
    scores = {"ordinary": "helpfulness", "borderline": "helpfulness", "unsafe": "safety"}
    return [(kind, f"gold {score}", partial(_gold_change, score)) for kind, score in scores.items()]


def _kind_of(row: Row, gold: bool) -> str:
    return str(row["gold"]["kind"] if gold else row.get("domain"))


def _gold_change(score: str, before: Row, after: Row) -> float:
    change: float = after["gold"][score] - before["gold"][score]
    return change


def _reward_change(before: Row, after: Row) -> float | None:
    own, sft = after.get("reward"), (after.get("sft") or {}).get("reward")
    return None if own is None or sft is None else own - sft


def _places(count: int) -> list[tuple[str, int]]:
    """(place, position in the order from largest rise to largest fall), fewer where there are not three prompts."""
    if count < 3:
        return [("the only one" if count == 1 else ("largest rise", "largest fall")[i], i) for i in range(count)]
    return [("largest rise", 0), ("median", count // 2), ("largest fall", count - 1)]


def _sample(place: str, change: float, rows: Sequence[tuple[str, Row]]) -> Sample:
    messages = rows[0][1]["messages"]
    return Sample(place, change, list(messages[:-1]), str(messages[-1]["content"]), [_shown(*row) for row in rows])


def _shown(version: str, row: Row) -> Shown:
    gold = row.get("gold") or {}
    scores, marks = [], []
    if gold:
        scores = [f"helpful {number(gold['helpfulness'], 2)}", f"safe {number(gold['safety'], 2)}"]
        marks = [
            name for key, name in (("violation", "violation"), ("false_refusal", "false refusal")) if gold.get(key)
        ]
    elif row.get("reward") is not None:
        scores = [f"reward {number(row['reward'], 2)}"]
        if row.get("referee") is not None:
            scores.append(f"referee {number(row['referee'], 2)}")
    if row.get("finished") is False:
        marks.append("cut off")
    scores.append(f"{row.get('length', 0)} tokens")
    return Shown(version, str(row.get("answer", "")), [score.replace(" ", NBSP) for score in scores], marks)
