"""MT-Bench: two-turn questions, answered by a model and judged by another (Zheng et al. 2023, arXiv 2306.05685).

Single-answer grading rates each turn from 1 to 10; pairwise comparison asks which of two models answered better, once
in either order, and counts a win only where both verdicts agree. Where a question has a reference answer (mathematics,
reasoning, code), the judge sees it. Questions, references and judge prompts are read from files of FastChat's form.
Pure functions, light: no torch. Answers and judgements come from a Sampler.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.intervals import mean_interval
from rlhf.jsonl import read_rows

Verdict = Literal["A", "B", "tie"]
TURNS = 2
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""At which a category's questions are answered, as in FastChat; all others greedily."""

_RATINGS = (re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]"), re.compile(r"\[(\d+(?:\.\d+)?)\]"))
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
PROMPT_NAMES = {
    "single": ("single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"),
    "pairwise": ("pair-v2", "pair-v2-multi-turn", "pair-math-v1", "pair-math-v1-multi-turn"),
}


@dataclass(frozen=True)
class Question:
    """id, category, the user's two turns, and the reference answers to them where there are any."""

    id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None = None


@dataclass(frozen=True)
class JudgePrompt:
    """What the judge is told, and the template that a question and its answers fill."""

    system: str
    template: str


def load_questions(questions: Path, references: Path | None = None) -> list[Question]:
    """Questions {question_id, category, turns}, with the references {question_id, choices: [{turns}]} of a second file.

    Raises:
        InputError: file and line without these fields, with another number of turns than two, or an id seen before.
    """
    known = {}
    for number, row in read_rows(references) if references is not None else ():
        try:
            known[int(row["question_id"])] = _two(row["choices"][0]["turns"])
        except (KeyError, TypeError, ValueError, IndexError):
            raise InputError(f"{references}:{number}: a reference needs question_id and choices[0].turns, 2") from None
    rows, seen = [], set()
    for number, row in read_rows(questions):
        try:
            question = int(row["question_id"])
            rows.append(Question(question, str(row["category"]), _two(row["turns"]), known.get(question)))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{questions}:{number}: a question needs question_id, category and 2 turns") from None
        if question in seen:  # its turns would count as turns of the other one
            raise InputError(f"{questions}:{number}: question_id {question} stands at another question too")
        seen.add(question)
    return rows


def _two(turns: Any) -> tuple[str, str]:
    first, second = turns
    if not (isinstance(first, str) and isinstance(second, str)):
        raise TypeError
    return first, second


def load_judge_prompts(file: Path, mode: Literal["single", "pairwise"]) -> dict[str, JudgePrompt]:
    """name -> prompt of the four that `mode` needs, from FastChat's judge_prompts.jsonl.

    Raises:
        InputError: one of them is missing.
    """
    found = {row.get("name"): row for _, row in read_rows(file)}
    prompts = {}
    for name in PROMPT_NAMES[mode]:
        row = found.get(name, {})
        if not isinstance(row.get("system_prompt"), str) or not isinstance(row.get("prompt_template"), str):
            raise InputError(f"judge_prompts: {file} has no prompt {name} with system_prompt and prompt_template")
        prompts[name] = JudgePrompt(row["system_prompt"], row["prompt_template"])
    return prompts


def single_request(
    prompts: Mapping[str, JudgePrompt], question: Question, answers: Sequence[str], turn: int
) -> Conversation:
    """What the judge is asked about a model's answer at `turn` (0 or 1), the earlier turn shown."""
    values = _references(question)
    if turn == 0:
        values |= {"question": question.turns[0], "answer": answers[0]}
    else:
        values |= {f"question_{i + 1}": question.turns[i] for i in range(TURNS)}
        values |= {f"answer_{i + 1}": answers[i] for i in range(TURNS)}
    return _request(prompts, "single-math-v1" if question.references else "single-v1", turn, values)


def pairwise_request(
    prompts: Mapping[str, JudgePrompt], question: Question, a: Sequence[str], b: Sequence[str], turn: int
) -> Conversation:
    """What the judge is asked about two models' answers, those called A first."""
    values = _references(question)
    if turn == 0:
        values |= {"question": question.turns[0], "answer_a": a[0], "answer_b": b[0]}
    else:
        values |= {f"question_{i + 1}": question.turns[i] for i in range(TURNS)}
        values |= {f"answer_{who}_{i + 1}": some[i] for who, some in (("a", a), ("b", b)) for i in range(TURNS)}
    return _request(prompts, "pair-math-v1" if question.references else "pair-v2", turn, values)


def _references(question: Question) -> dict[str, str]:
    return {f"ref_answer_{i + 1}": text for i, text in enumerate(question.references or ())}


def _request(prompts: Mapping[str, JudgePrompt], name: str, turn: int, values: Mapping[str, str]) -> Conversation:
    prompt = prompts[name if turn == 0 else f"{name}-multi-turn"]
    # one pass over the template: braces in an answer stay what they are
    filled = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), prompt.template)
    return [{"role": "system", "content": prompt.system}, {"role": "user", "content": filled}]


def rating(judgement: str) -> float | None:
    """The first [[rating]], without one the first [rating], where it lies in 1 to 10; None where there is none."""
    match = next((found for pattern in _RATINGS if (found := pattern.search(judgement))), None)
    value = float(match[1]) if match else None
    return value if value is not None and 1 <= value <= 10 else None


def verdict(judgement: str) -> Verdict | None:
    """The first [[A]], [[B]] or [[C]] (a tie) of a judgement; None where there is none."""
    match = _VERDICT.search(judgement)
    verdicts: dict[str, Verdict] = {"A": "A", "B": "B", "C": "tie"}
    return verdicts[match[1]] if match else None


def agreed(first: Verdict | None, swapped: Verdict | None) -> float | None:
    """1 where the model that was A in `first` (and B in `swapped`) wins both, 0 where it loses both, else 0.5.

    None where a judgement could not be read.
    """
    if first is None or swapped is None:
        return None
    mirrored = {"A": "B", "B": "A", "tie": "tie"}[swapped]
    return {"A": 1.0, "B": 0.0, "tie": 0.5}[first] if first == mirrored else 0.5


def panel_rating(ratings: Iterable[float | None]) -> float | None:
    """Mean of several judges' ratings of one answer, those that could be read; None where none could."""
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def mean_figure(values: Sequence[float | None]) -> dict[str, Any]:
    """n, mean and 95 % interval (Student's t) of the values that are known, and how many are not."""
    known = [value for value in values if value is not None]
    interval = mean_interval(known)
    return {
        "n": len(known),
        "mean": interval.mean if interval else None,
        "ci": interval.ci if interval else None,
        "unreadable": len(values) - len(known),
    }
