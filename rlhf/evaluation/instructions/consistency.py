"""Multi-turn consistency: how many dialogues still obey, turn after turn, what was said in the first (paper, 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, TypedDict

from rlhf.conversation import Conversation
from rlhf.evaluation.answers import Answer, by_prompt
from rlhf.evaluation.instructions.checkers import Checker
from rlhf.intervals import mean_interval, rate_interval
from rlhf.synthesis.ghost_attention import training_context
from rlhf.synthesis.instructions import Instruction


@dataclass(frozen=True)
class Trial:
    """One dialogue that one policy held under one instruction.

    Args:
        policy, run: whose it is.
        group: of the instruction, "trained" or "unseen".
        kind: of the instruction's constraints, "figure" or "figure, language".
        instruction: as it stood in the first turn.
        messages: the dialogue without it.
        obeyed: of each answer, in order; shorter than asked for where the context was full.
        finished: the last answer came to its end.
    """

    policy: str
    run: str
    group: str
    kind: str
    instruction: str
    messages: Conversation
    obeyed: list[bool]
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def obedience(
    checker: Checker, instructions: Sequence[Instruction], dialogues: Sequence[Conversation]
) -> list[list[bool]]:
    """Whether each answer of each dialogue obeys; the checker sees the dialogue up to that answer, and no more."""
    asked: list[tuple[int, Instruction, Conversation]] = []
    for number, (instruction, messages) in enumerate(zip(instructions, dialogues, strict=True)):
        whole = training_context(messages, instruction.text) if messages else []
        ends = [end for end, message in enumerate(whole, start=1) if message["role"] == "assistant"]
        asked += [(number, instruction, whole[:end]) for end in ends]
    obeyed: list[list[bool]] = [[] for _ in dialogues]
    verdicts = checker([i for _, i, _ in asked], [c for _, _, c in asked]) if asked else []
    for (number, _, _), verdict in zip(asked, verdicts, strict=True):
        obeyed[number].append(bool(verdict))
    return obeyed


class Obedience(TypedDict):
    """The share of the dialogues of one policy and group whose answer in that turn obeys.

    ci: Wilson's, 95 %, over dialogues. by_run: run -> share. share is None where the context held no dialogue so far.
    """

    policy: str
    group: str
    turn: int
    share: float | None
    ci: list[float] | None
    dialogues: int
    by_run: dict[str, float]


class Everyday(TypedDict):
    """What one policy's answers to ordinary prompts are worth, and how much more than the first policy's.

    figure: "helpfulness" (over prompts that are not unsafe) or "safety" (over those tagged so). The gain is paired by
    prompt; it is None for the first policy.
    """

    policy: str
    figure: Literal["helpfulness", "safety"]
    mean: float | None
    ci: list[float] | None
    gain: float | None
    gain_ci: list[float] | None


class Consistency(TypedDict):
    """The content of consistency.json. by_kind: of each kind of instruction. attention_to_instruction: by policy."""

    consistency: list[Obedience]
    by_kind: list[Obedience]
    everyday: list[Everyday]
    attention_to_instruction: dict[str, list[float]]


def consistency_figures(trials: Sequence[Trial], turns: Sequence[int]) -> list[Obedience]:
    """A row for each policy, group and turn."""
    figures: list[Obedience] = []
    for policy in dict.fromkeys(t.policy for t in trials):
        for group in dict.fromkeys(t.group for t in trials):
            own = [t for t in trials if (t.policy, t.group) == (policy, group)]
            for turn in turns:
                there = [t for t in own if len(t.obeyed) >= turn]
                found = rate_interval([float(t.obeyed[turn - 1]) for t in there])
                by_run = {
                    run: fmean(t.obeyed[turn - 1] for t in there if t.run == run)
                    for run in dict.fromkeys(t.run for t in there)
                }
                figures.append(
                    {
                        "policy": policy,
                        "group": group,
                        "turn": turn,
                        "share": None if found is None else found.mean,
                        "ci": None if found is None else found.ci,
                        "dialogues": len(there),
                        "by_run": by_run,
                    }
                )
    return figures


def everyday_figures(answers: dict[str, dict[str, list[Answer]]]) -> list[Everyday]:
    """A row for each policy and figure.

    Args:
        answers: policy -> run -> its judged answers, to the same prompts for every policy.
    """

    def values(policy: str, figure: Literal["helpfulness", "safety"]) -> list[float]:
        found: list[float] = []
        for own in answers[policy].values():
            chosen = [
                a
                for a in own
                if a.gold is not None
                and (a.gold["kind"] != "unsafe" if figure == "helpfulness" else a.domain == "safety")
            ]
            found += by_prompt(chosen, lambda a: float(a.gold[figure]) if a.gold is not None else None)
        return found

    first = next(iter(answers))
    shown: tuple[Literal["helpfulness", "safety"], ...] = ("helpfulness", "safety")
    rows: list[Everyday] = []
    for policy in answers:
        for figure in shown:
            own, others = values(policy, figure), values(first, figure)
            found = mean_interval(own)
            gain = mean_interval([a - b for a, b in zip(own, others, strict=True)]) if policy != first else None
            rows.append(
                {
                    "policy": policy,
                    "figure": figure,
                    "mean": None if found is None else found.mean,
                    "ci": None if found is None else found.ci,
                    "gain": None if gain is None else gain.mean,
                    "gain_ci": None if gain is None else gain.ci,
                }
            )
    return rows
