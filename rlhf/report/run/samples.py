"""Which answers the report shows: picked by a rule from how much their score changed, not by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.ppo.watch import REPETITIVE, repeated_share
from rlhf.report.drawing.text import NBSP, first_label, number

Row = Mapping[str, Any]
MARKS = ("violation", "false refusal", "empty", "cut off", "repeats itself")
"""What an answer may be suspected of: the first two by gold."""
RULE = (
    "Picked by a rule: within each kind of prompt, the prompts are sorted by how much the score of the first answer "
    "changed from {first} to {last}; shown are the largest rise, the median and the largest fall (equal ones by their "
    "id)."
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
    for kind, score in _kinds(gold):
        own = [p for p in common if (kind_of(after[p]) if gold else str(after[p].get("domain"))) == kind]
        changes = {p: change_of(before[p], after[p]) for p in own}
        ordered = sorted((-change[0], prompt) for prompt, change in changes.items() if change is not None)
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


def _kinds(gold: bool) -> list[tuple[str, str]]:
    """(kind of prompt, the score that it is judged by)."""
    if not gold:
        return [(kind, "reward") for kind in ("helpfulness", "safety")]
    return [("ordinary", "gold helpfulness"), ("borderline", "gold helpfulness"), ("unsafe", "gold safety")]


def kind_of(row: Row) -> str:
    """The kind of request where gold knows it, else the prompt's domain."""
    gold = row.get("gold")
    return str(gold["kind"] if gold else row.get("domain"))


def change_of(before: Row, after: Row) -> tuple[float, str] | None:
    """How much the score that a prompt is judged by changed from the first version's answer to another's, and which.

    Gold's where it judged both: safety of an unsafe request, helpfulness of another. Else the gated reward by the
    latter's reward models, which scored both.
    """
    if (old := before.get("gold")) and (new := after.get("gold")):
        score = "safety" if new["kind"] == "unsafe" else "helpfulness"
        return float(new[score] - old[score]), f"gold {score}"
    own, first = after.get("reward"), first_reward(after)
    return None if own is None or first is None else (float(own - first), "reward")


def first_reward(row: Row) -> float | None:
    """Of the first version's answer by the reward models of the version that wrote the row's."""
    return (row.get("sft") or {}).get("reward")


def _places(count: int) -> list[tuple[str, int]]:
    """(place, position in the order from largest rise to largest fall), fewer where there are not three prompts."""
    if count < 3:
        return [("the only one" if count == 1 else ("largest rise", "largest fall")[i], i) for i in range(count)]
    return [("largest rise", 0), ("median", count // 2), ("largest fall", count - 1)]


def _sample(place: str, change: float, rows: Sequence[tuple[str, Row]]) -> Sample:
    messages = rows[0][1]["messages"]
    first = first_label([rows[0][0]])
    return Sample(
        place, change, list(messages[:-1]), str(messages[-1]["content"]), [_shown(*row, first) for row in rows]
    )


def _shown(version: str, row: Row, first: str) -> Shown:
    """A reward stands with the first version's by the same models, and not by itself: others' do not compare."""
    found = {name: f"{name} {number(value, digits)}" for name, value, digits in scores_of(row)[:2] if name != "tokens"}
    if "reward" in found and (beside := first_reward(row)) is not None:
        found["reward"] += f" ({first} {number(beside, 2)})"
    else:
        found.pop("reward", None)
    scores = [text.replace(" ", NBSP) for text in found.values()]
    scores.append(f"{row.get('length', 0)}{NBSP}tokens")
    return Shown(version, str(row.get("answer", "")), scores, marks_of(row))


def scores_of(row: Row) -> list[tuple[str, float, int]]:
    """(name, value, digits) of what an answer's judges said, the most telling first, and its length."""
    gold = row.get("gold") or {}
    found = [("gold helpfulness", gold.get("helpfulness"), 2), ("gold safety", gold.get("safety"), 2)]
    found += [("reward", row.get("reward"), 2), ("referee", row.get("referee"), 2), ("tokens", row.get("length"), 0)]
    return [(name, value, digits) for name, value, digits in found if value is not None]


def marks_of(row: Row) -> list[str]:
    """What an answer is suspected of, of `MARKS`."""
    gold, words = row.get("gold") or {}, str(row.get("answer", "")).split()
    suspected = {
        "violation": bool(gold.get("violation")),
        "false refusal": bool(gold.get("false_refusal")),
        "empty": not words,
        "cut off": row.get("finished") is False,
        "repeats itself": repeated_share(words) > REPETITIVE,
    }
    return [mark for mark in MARKS if suspected[mark]]
