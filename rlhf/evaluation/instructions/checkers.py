"""Who says whether an answer obeys its instruction: a rule, one's own code, or a judge model. Light: no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from rlhf.conversation import Conversation, says_nothing
from rlhf.errors import InputError
from rlhf.imports import import_object, own_code
from rlhf.sampling.protocol import Sampler, SamplingParams
from rlhf.synthesis.instructions import Constraint, Instruction

JUDGE_QUESTION = """\
An assistant was told: "{instruction}"
It was then asked: "{question}"
It answered: "{answer}"
Does the answer obey what the assistant was told? Say only Yes or No."""


class Checker(Protocol):
    """Judges the last message of each conversation, the assistant's; one's own is named by its import path."""

    def __call__(self, instructions: Sequence[Instruction], conversations: Sequence[Conversation]) -> list[bool]: ...


def obeys_patterns(instructions: Sequence[Instruction], conversations: Sequence[Conversation]) -> list[bool]:
    """Whether every constraint's pattern is found in the last message."""
    return [
        all(re.search(part.pattern or "", c[-1]["content"].strip()) for part in instruction.constraints)
        for instruction, c in zip(instructions, conversations, strict=True)
    ]


class Judge:
    """Asks a chat model, which is told to say Yes or No, greedily.

    Args:
        sampler: of the judge. Anything but an answer that begins with yes counts as not obeyed.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(self, instructions: Sequence[Instruction], conversations: Sequence[Conversation]) -> list[bool]:
        prompts: list[Conversation] = []
        for instruction, c in zip(instructions, conversations, strict=True):
            question = JUDGE_QUESTION.format(
                instruction=instruction.text, question=c[-2]["content"], answer=c[-1]["content"]
            )
            prompts.append([{"role": "user", "content": question}])
        verdicts = self.sampler.sample(prompts, 1, SamplingParams(temperature=0, max_new_tokens=4))
        return [samples[0].text.strip().lower().startswith("yes") for samples in verdicts]


def load_checker(spec: str, constraints: Sequence[Constraint], judge: Sampler | None = None) -> Checker:
    """The checker that `spec` names: "pattern", "judge" (by the sampler `judge`), or `package.module:attribute`.

    An empty answer never obeys, whoever checks: no checker is asked about one.

    Raises:
        InputError: a constraint has no pattern, there is no judge, an import fails, or it is not callable.
    """
    checker = _named_checker(spec, constraints, judge)

    def check(instructions: Sequence[Instruction], conversations: Sequence[Conversation]) -> list[bool]:
        spoken = [number for number, c in enumerate(conversations) if c and not says_nothing(c[-1]["content"])]
        asked = [instructions[i] for i in spoken], [conversations[i] for i in spoken]
        with own_code("checker", spec):
            verdicts = list(checker(*asked)) if spoken else []
        if len(verdicts) != len(spoken):
            raise InputError(
                f"checker: {spec} must give a verdict on each of {len(spoken)} answers, got {len(verdicts)}"
            )
        found = dict(zip(spoken, verdicts, strict=True))
        return [bool(found.get(number)) for number in range(len(conversations))]

    return check


def _named_checker(spec: str, constraints: Sequence[Constraint], judge: Sampler | None) -> Checker:
    if spec == "pattern":
        without = next((c for c in constraints if c.pattern is None), None)
        if without is not None or not constraints:
            named = "the policy's own lists have" if without is None else f"{without.kind} {without.value!r} has"
            raise InputError(
                f"checker: {named} no pattern; write one into the instructions file or use another checker"
            )
        return obeys_patterns
    if spec == "judge":
        if judge is None:
            raise InputError("checker: the judge is a server; name it, e.g. --judge.url http://localhost:8000/v1")
        return Judge(judge)
    checker = import_object("checker", spec)
    if not callable(checker):
        raise InputError(f"checker: {spec} is a {type(checker).__name__}; name a function")
    return checker  # type: ignore[no-any-return]
