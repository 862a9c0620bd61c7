"""Which answers of a round of rejection sampling are trained on (Llama 2 paper, section 3.2.3).

The paper keeps the best answer of each prompt by the gated reward. Everything else here is an option, off by default;
a rule of one's own stands in its place by import path (`SelectionRule`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from rlhf.conversation import Conversation, says_nothing
from rlhf.data.rows import Completion
from rlhf.errors import InputError
from rlhf.imports import named_object, own_code


@dataclass(frozen=True)
class SelectionConfig:
    """Which of a prompt's answers are kept.

    Args:
        rule: best keeps each prompt's best answers by the options below; random and longest keep in their place any of
            the answers, or the longest ones: controls, which say what choosing by reward is worth beside them; or
            `package.module:attribute` of your own (`SelectionRule`), which reads of the options what it likes.
        top_n: answers to a prompt, at most this many.
        minimum_reward: answers below this raw reward are not kept; null: no limit.
        max_similarity: an answer is not kept where the Jaccard index of its word 1- to 3-grams with a better kept
            answer to the same prompt is above this; 1: only a repeated text is left out.
        max_length_ratio: answers of more characters than this times the median of the prompt's candidates are not
            kept; null: no limit.
        missing_end_penalty: an answer without an end token may be kept as well, its reward counting as so much less in
            every comparison; it is trained on without an end. null: it is never kept.
    """

    rule: str = "best"
    top_n: int = 1
    minimum_reward: float | None = None
    max_similarity: float = 1.0
    max_length_ratio: float | None = None
    missing_end_penalty: float | None = None

    def __post_init__(self) -> None:
        find_rule(self.rule)
        if self.top_n < 1:
            raise InputError(f"top_n: must be at least 1, got {self.top_n}")
        if self.minimum_reward is not None and not math.isfinite(self.minimum_reward):
            raise InputError(f"minimum_reward: must be a finite number, or null for none, got {self.minimum_reward}")
        if not 0 <= self.max_similarity <= 1:
            raise InputError(f"max_similarity: must lie between 0 and 1, got {self.max_similarity}")
        if self.max_length_ratio is not None and not 1 <= self.max_length_ratio < math.inf:
            raise InputError(f"max_length_ratio: must be 1 or above, or null for none, got {self.max_length_ratio}")
        if self.missing_end_penalty is not None and not 0 <= self.missing_end_penalty < math.inf:
            raise InputError(
                f"missing_end_penalty: must be 0 or above, or null to keep no unfinished answer, got "
                f"{self.missing_end_penalty}"
            )

    def keeps(self, row: Completion) -> bool:
        """Whether an answer has text and came to its end, or may lack it."""
        return (row.finished or self.missing_end_penalty is not None) and not says_nothing(row.text)

    def reward(self, row: Completion) -> float:
        """The reward by which answers are compared: raw, less the penalty where there is no end."""
        return row.reward if row.finished else row.reward - (self.missing_end_penalty or 0.0)


@dataclass(frozen=True)
class Selection:
    """`chosen`: prompt after prompt, best first. `left_out`: reason -> answers that could not be kept for it."""

    chosen: list[Completion]
    left_out: Counter[str]


class SelectionRule(Protocol):
    """Says which answers are trained on: a function, or a class that is made without arguments."""

    def __call__(
        self, candidates: Sequence[Sequence[Completion]], config: SelectionConfig, left_out: Counter[str]
    ) -> Sequence[Completion]:
        """Those of the candidates that are kept.

        Args:
            candidates: of each prompt the answers that may be kept, best first; for some prompts there may be none.
            config: the options beside the rule.
            left_out: reason -> answers that could not be kept for it; the rule adds its own.
        """
        ...


def select(rows: Sequence[Completion], config: SelectionConfig) -> Selection:
    """The best answers of each prompt by reward; prompts in the order of their first row.

    Only answers that `config.keeps` are candidates; a prompt without one that may be kept is left out. Equal rewards:
    the higher helpfulness score wins, then the newer version (the one that appears later in `rows`), then the lower
    index (decision 26). Answers that are merely not good enough for `top_n` are not counted in `left_out`.
    """
    age = {version: number for number, version in enumerate(dict.fromkeys(row.version for row in rows))}
    by_prompt: dict[str, list[Completion]] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        candidates = by_prompt.setdefault(row.prompt_id, [])
        if config.keeps(row):
            candidates.append(row)
        else:
            left_out["empty" if row.finished or config.missing_end_penalty is not None else "unfinished"] += 1
    for candidates in by_prompt.values():
        candidates.sort(key=lambda row: (-config.reward(row), -row.helpfulness, -age[row.version], row.index))
    with own_code("selection.rule", config.rule):
        kept = find_rule(config.rule)(list(by_prompt.values()), config, left_out)
        chosen = list(kept) if isinstance(kept, Iterable) else [kept]
    known = {id(row) for candidates in by_prompt.values() for row in candidates}
    if len({id(row) for row in chosen} & known) < len(chosen):
        raise InputError(f"selection.rule: {config.rule} must give back some of its candidates, each at most once")
    return Selection(chosen, left_out)


def select_as_one(rows: Sequence[Completion], config: SelectionConfig) -> Selection:
    """`select` on every process of a launch, with what the main one chose: a rule of one's own may draw at random.

    Args:
        rows: the same on all of them, in the same order.
    """
    from accelerate.utils import broadcast_object_list

    selection = select(rows, config)
    place = {id(row): number for number, row in enumerate(rows)}
    agreed: list[Any] = [[place[id(row)] for row in selection.chosen], selection.left_out]
    broadcast_object_list(agreed)
    return Selection([rows[number] for number in agreed[0]], agreed[1])


def best_of_each(
    candidates: Sequence[Sequence[Completion]], config: SelectionConfig, left_out: Counter[str]
) -> list[Completion]:
    """The paper's rule, a `SelectionRule`: each prompt's best answers, within the options' limits."""
    return [row for own in candidates for row in _best(own, config, left_out)]


def random_of_each(
    candidates: Sequence[Sequence[Completion]], config: SelectionConfig, left_out: Counter[str]
) -> list[Completion]:
    """A control (decision 63), a `SelectionRule`: any answers that may be kept, the same each time, within limits."""

    def draw(row: Completion) -> bytes:
        return hashlib.sha256(f"{row.prompt_id}\n{row.version}\n{row.index}".encode()).digest()

    return [row for own in candidates for row in _best(sorted(own, key=draw), config, left_out)]


def longest_of_each(
    candidates: Sequence[Sequence[Completion]], config: SelectionConfig, left_out: Counter[str]
) -> list[Completion]:
    """A control, a `SelectionRule`: the answers of the most tokens, the better one first where they are as long."""
    return [
        row for own in candidates for row in _best(sorted(own, key=lambda row: -len(row.token_ids)), config, left_out)
    ]


RULES: Mapping[str, SelectionRule] = {"best": best_of_each, "random": random_of_each, "longest": longest_of_each}
"""Rules by name; a new one is a function and a line here, or an import path in the config."""


def find_rule(name: str) -> SelectionRule:
    """The rule that a config names; InputError where there is none of that name, or it cannot be called."""
    found = named_object("selection.rule", name, RULES)
    if not callable(found):
        raise InputError(f"selection.rule: {name} is a {type(found).__name__}; name a function")
    return found  # type: ignore[no-any-return]


def _best(candidates: Sequence[Completion], config: SelectionConfig, left_out: Counter[str]) -> list[Completion]:
    """Of one prompt's candidates, best first, those to keep."""
    kept: list[Completion] = []
    longest = math.inf
    if config.max_length_ratio is not None and candidates:
        longest = config.max_length_ratio * median(len(row.text) for row in candidates)
    for row in candidates:
        if len(kept) == config.top_n:
            break
        if config.minimum_reward is not None and config.reward(row) < config.minimum_reward:
            left_out["below minimum_reward"] += 1
        elif len(row.text) > longest:
            left_out["above max_length_ratio"] += 1
        elif any(row.text == other.text for other in kept):
            left_out["same text"] += 1
        elif any(similarity(row.text, other.text) > config.max_similarity for other in kept):
            left_out["above max_similarity"] += 1
        else:
            kept.append(row)
    return kept


def similarity(one: str, other: str) -> float:
    """Jaccard index of two texts' sets of word 1-, 2- and 3-grams, 0 to 1; lower case, without punctuation."""
    first, second = _grams(one), _grams(other)
    return len(first & second) / len(first | second) if first or second else 1.0


def _grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)}


def selected_rows(selection: Selection, dialogues: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
    """The rows of `selected.jsonl`: each chosen answer's dialogue, and where it comes from."""
    for row, messages in zip(selection.chosen, dialogues, strict=True):
        yield {"id": row.prompt_id, "messages": messages, "version": row.version, "reward": row.reward}


def refuse_empty(selection: Selection) -> None:
    """InputError where no answer is left to train on."""
    if not selection.chosen:
        counts = ", ".join(f"{count} {reason}" for reason, count in selection.left_out.items())
        raise InputError(
            f"selection: no answer is left to train on ({counts or 'the rule keeps none'}); raise "
            "sampling.max_new_tokens, leave out prompts that fill the context, or ask for less"
        )
