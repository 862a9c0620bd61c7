"""IFEval: prompts with instructions that a rule can check, and the share of them that a policy follows. Light.

Zhou et al. 2023 (arXiv 2311.07911) report four figures: of the prompts those whose instructions are all followed, and
of the instructions those followed; strictly, and loosely, which looks past an introduction, a last line and asterisks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from rlhf.conversation import Conversation
from rlhf.data.loading import source_rows
from rlhf.errors import InputError
from rlhf.evaluation.instructions.ifeval_rules import RULES, follows, follows_loosely
from rlhf.intervals import wilson


@dataclass(frozen=True)
class InstructedPrompt:
    """A prompt and its instructions, each with its arguments by name."""

    id: str
    text: str
    instructions: tuple[tuple[str, Mapping[str, Any]], ...]

    @property
    def messages(self) -> Conversation:
        """What a policy is asked."""
        return [{"role": "user", "content": self.text}]


class Followed(TypedDict):
    """A share with Wilson's 95 % interval, over the prompts: the instructions of one are not independent."""

    n: int
    share: float
    ci: list[float] | None


class InstructionFigures(TypedDict):
    """The content of instruction_evaluation.json; by_instruction is strict, by the id in the published set."""

    name: str
    prompts: int
    prompt_strict: Followed
    prompt_loose: Followed
    instruction_strict: Followed
    instruction_loose: Followed
    by_instruction: dict[str, Followed]


def read_prompts(source: str) -> list[InstructedPrompt]:
    """Rows of the published form: key, prompt, instruction_id_list, kwargs (one object an instruction, nulls left out).

    Raises:
        InputError: with the row, where a field is missing, an instruction is unknown, or its arguments are not its own.
    """
    found = []
    for number, row in source_rows(source):
        where = f"{source}:{number}"
        text, ids, kwargs = row.get("prompt"), row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: prompt: must be a text, got {text!r}")
        if not isinstance(ids, list) or not isinstance(kwargs, list) or not ids or len(ids) != len(kwargs):
            raise InputError(
                f"{where}: instruction_id_list, kwargs: must be lists, as long as each other; rows of IFEval have them"
            )
        instructions = tuple(_instruction(where, *pair) for pair in zip(ids, kwargs, strict=True))
        found.append(InstructedPrompt(str(row.get("key", number)), text, instructions))
    if len({prompt.id for prompt in found}) < len(found):
        raise InputError(f"{source}: two rows have the same key; give each its own")
    return found


def _instruction(where: str, name: Any, given: Any) -> tuple[str, dict[str, Any]]:
    if name not in RULES:
        raise InputError(f"{where}: instruction_id_list: there is no rule for {name!r}; leave the row out")
    arguments = {key: value for key, value in dict(given or {}).items() if value is not None}
    wanted = list(inspect.signature(RULES[name]).parameters)[1:]
    if set(arguments) != set(wanted):
        raise InputError(f"{where}: kwargs: {name} takes {', '.join(wanted) or 'none'}, got {', '.join(arguments)}")
    return str(name), arguments


@dataclass(frozen=True)
class Verdicts:
    """Of one answer: whether each of its prompt's instructions is followed, strictly and loosely."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def judge(prompt: InstructedPrompt, answer: str) -> Verdicts:
    """What the rules say of an answer."""
    return Verdicts(
        tuple(follows(answer, name, arguments) for name, arguments in prompt.instructions),
        tuple(follows_loosely(answer, name, arguments) for name, arguments in prompt.instructions),
    )


def instruction_figures(
    name: str, prompts: Sequence[InstructedPrompt], verdicts: Sequence[Verdicts]
) -> InstructionFigures:
    """The four figures, and each instruction's own.

    Args:
        name: of the policy.
        verdicts: of an answer to each prompt.
    """
    by_instruction: dict[str, list[bool]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        for (instruction, _), followed in zip(prompt.instructions, verdict.strict, strict=True):
            by_instruction.setdefault(instruction, []).append(followed)
    strict, loose = [v.strict for v in verdicts], [v.loose for v in verdicts]
    return {
        "name": name,
        "prompts": len(prompts),
        "prompt_strict": _share([all(own) for own in strict], len(prompts)),
        "prompt_loose": _share([all(own) for own in loose], len(prompts)),
        "instruction_strict": _share([one for own in strict for one in own], len(prompts)),
        "instruction_loose": _share([one for own in loose for one in own], len(prompts)),
        "by_instruction": {key: _share(own, len(own)) for key, own in sorted(by_instruction.items())},
    }


def _share(followed: Sequence[bool], units: int) -> Followed:
    """Of at least one instruction."""
    share = sum(followed) / len(followed)
    return {"n": len(followed), "share": share, "ci": wilson(share, units).ci}
