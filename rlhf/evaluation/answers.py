"""A version's answers to the test prompts, with everything that judged them: the rows of `answers.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.conversation import Conversation
from rlhf.data.rows import Domain, Prompt
from rlhf.errors import InputError
from rlhf.jsonl import read_json, read_rows, write_rows

if TYPE_CHECKING:
    from rlhf.sampling.protocol import Sample


@dataclass(frozen=True)
class Answer:
    """One answer. What was not measured is None; an answer may be empty.

    Args:
        prompt_id, messages, domain, source: of the prompt.
        index: which of the prompt's answers, from 0.
        answer: its text.
        length: tokens, the end token included.
        finished: the end token came.
        helpfulness, safety: raw scores of the two reward models.
        reward: the one that the gate chose.
        referee: raw score of the referee reward model.
        gold: the scorer's verdict, at least {helpfulness, safety, violation, false_refusal, kind}.
        kl, kl_k3: the answer's k1 and k3 estimates, summed over its tokens, in nats.
    """

    prompt_id: str
    index: int
    messages: Conversation
    domain: Domain
    source: str
    answer: str
    length: int
    finished: bool
    helpfulness: float | None = None
    safety: float | None = None
    reward: float | None = None
    referee: float | None = None
    gold: dict[str, Any] | None = None
    kl: float | None = None
    kl_k3: float | None = None

    @property
    def prompt(self) -> Prompt:
        """What it answers."""
        return Prompt(self.prompt_id, self.messages, self.domain, self.source)

    @property
    def conversation(self) -> Conversation:
        """The dialogue with the answer as its last message."""
        return [*self.messages, {"role": "assistant", "content": self.answer}]


Value = Callable[[Answer], "float | None"]
"""A figure of one answer; None: it has none."""


def value_of(field: str) -> Value:
    """The answer's field of this name."""
    return lambda answer: getattr(answer, field)


def by_prompt(answers: Iterable[Answer], value: Value) -> list[float]:
    """The mean of `value` over each prompt's answers, in the prompts' order; None values are left out."""
    values: dict[str, list[float]] = {}
    for answer in answers:
        if (number := value(answer)) is not None:
            values.setdefault(answer.prompt_id, []).append(number)
    return [sum(own) / len(own) for own in values.values()]


def answers_of(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Sample]]) -> list[Answer]:
    """What a sampler drew, prompt after prompt, not judged yet."""
    return [
        Answer(p.id, index, p.messages, p.domain, p.source, sample.text, len(sample.token_ids), sample.finished)
        for p, samples in zip(prompts, drawn, strict=True)
        for index, sample in enumerate(samples)
    ]


def write_answers(path: Path, answers: Sequence[Answer], extras: Sequence[Mapping[str, Any]]) -> None:
    """Write one row an answer, with `extras[i]` added to row i."""
    write_rows(path, (asdict(answer) | dict(extra) for answer, extra in zip(answers, extras, strict=True)))


def read_answers(path: Path) -> list[Answer]:
    """The answers of an `answers.jsonl`; fields beyond Answer's are left out.

    Raises:
        InputError: with the line, where a row lacks a field.
    """
    known = [field.name for field in fields(Answer)]
    answers = []
    for number, row in read_rows(path):
        try:
            answers.append(Answer(**{name: row[name] for name in known if name in row}))
        except TypeError:
            missing = ", ".join(name for name in known[:8] if name not in row)
            raise InputError(
                f"{path}:{number}: not a row of recipes/evaluation/evaluate.py, it lacks {missing}"
            ) from None
    return answers


def evaluated_name(evaluation: Path) -> str:
    """What an evaluation's folder calls the version that it measured; "sft" where it does not say."""
    try:
        name = read_json(evaluation / "evaluation.json")["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return "sft"
    return str(name)


def require_same_prompts(opponents: Sequence[Answer], prompts: Sequence[Prompt], evaluation: Path) -> None:
    """Raise InputError where an evaluation's answers are not to these prompts; ids alone do not tell."""
    theirs = {answer.prompt_id: answer.messages for answer in opponents}
    ours = {prompt.id: prompt.messages for prompt in prompts}
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if differing:
        raise InputError(
            f"baseline_evaluation: {evaluation} answers other prompts than these, for instance {differing[0]!r}; "
            "evaluate the baseline on the same prompts"
        )
