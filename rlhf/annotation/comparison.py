"""Two models' answers to the same prompts, side by side for human evaluation (paper, section 3.4.2)."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rlhf.annotation.judges import Judges
from rlhf.annotation.labelling import label_batch
from rlhf.annotation.protocol import Outcome, Pair
from rlhf.annotation.scales import EVALUATION
from rlhf.annotation.store import Store
from rlhf.conversation import Conversation, check_conversation, decided
from rlhf.data.rows import Domain
from rlhf.errors import InputError
from rlhf.jsonl import read_json, read_rows
from rlhf.sampling.chat import ServerConfig

BATCH = "comparison"
JUDGE = "judge "
"""Before the name of a judge model, among those who rate."""
RATERS = 3
OUTCOMES: dict[float, Outcome] = {1.0: "a", 0.5: "tie", 0.0: "b"}


@dataclass(frozen=True)
class Given:
    """One model's answer to a prompt, and what a gold scorer says of it, where that is known."""

    messages: Conversation
    domain: Domain
    text: str
    gold: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """What there is to rate.

    Args:
        names: of the two models.
        pairs: to be rated; a is the first model's answer.
        decided: outcome by the id of a pair that nobody needs to look at: the same text twice is a tie, and an empty
            answer loses.
        given: both answers of every pair, rated or decided, by its id.
        unmatched: prompts that one file alone answers.
    """

    names: tuple[str, str]
    pairs: list[Pair]
    decided: dict[str, Outcome]
    given: dict[str, tuple[Given, Given]] = field(default_factory=dict)
    unmatched: int = 0


def match(
    names: tuple[str, str],
    one: Mapping[str, Given],
    other: Mapping[str, Given],
    prompts: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Both models' answers side by side.

    Args:
        names: of the two models.
        one, other: their answers by prompt (`read_answers`).
        prompts: so many alone, drawn by `seed`; None: all.

    Raises:
        InputError: no prompt is answered in both.
    """
    both = [key for key in one if key in other]
    if not both:
        raise InputError(
            f"compare: {names[0]} and {names[1]} answer no prompt in common; name answers of two models to the same "
            "prompts"
        )
    comparison = Comparison(names, [], {}, {}, len(one.keys() ^ other.keys()))
    for key in drawn_of(both, prompts, seed):
        mine, theirs = one[key], other[key]
        pair = Pair(mine.messages, mine.text, theirs.text, mine.domain, models=names, part="test")
        comparison.given[pair.id] = (mine, theirs)
        outcome = decided(mine.text, theirs.text)
        if outcome is None:
            comparison.pairs.append(pair)
        else:
            comparison.decided[pair.id] = OUTCOMES[outcome]
    return comparison


def drawn_of(keys: Sequence[str], count: int | None, seed: int) -> list[str]:
    """So many of the keys, drawn by `seed`, in their order; all where there are no more, or `count` is None."""
    if count is None or count >= len(keys):
        return list(keys)
    kept = set(random.Random(seed).sample(keys, count))
    return [key for key in keys if key in kept]


def open_comparison(store: Store, comparison: Comparison, raters: int) -> None:
    """Put the pairs into a store; again with the same ones it goes on. Nothing is put where all are decided."""
    if comparison.pairs:
        store.add_batch(BATCH, comparison.pairs, labels=raters, scale=EVALUATION.name)


def judge_comparison(store: Store, server: ServerConfig) -> Judges:
    """A judge model rates every pair that still wants a rating, in one rater's place; return it.

    It is asked in both orders; where the order decides it is a tie.
    """
    judge = Judges([server], name=f"{JUDGE}{server.model}", ties=True)
    if BATCH in store.batches():
        label_batch(store, BATCH, judge)
    return judge


def read_answers(path: Path) -> dict[str, Given]:
    """The answers of a file by their prompt; of several to one prompt the first counts.

    Args:
        path: the folder of a stage of recipes/evaluation/evaluate.py; or a file of rows {messages, answer} or
            {messages}, whose last message is then the answer.

    Raises:
        InputError: with file and line, a row that has no answer.
    """
    file = path / "answers.jsonl" if path.is_dir() else path
    if not file.exists():
        what = "has no answers.jsonl" if path.is_dir() else "does not exist"
        raise InputError(
            f"compare: {path} {what}; name a file of answers, or a folder of recipes/evaluation/evaluate.py"
        )
    found: dict[str, Given] = {}
    for number, row in read_rows(file):
        try:
            given = _given(row)
        except InputError as error:
            raise InputError(f"{file}:{number}: {error}") from error
        key = json.dumps([(message["role"], message["content"]) for message in given.messages])
        found.setdefault(key, given)
    return found


def _given(row: Mapping[str, Any]) -> Given:
    messages, text = row.get("messages"), row.get("answer")
    if text is None and isinstance(messages, list) and messages:
        *messages, last = messages
        text = last.get("content") if isinstance(last, Mapping) and last.get("role") == "assistant" else None
    if not isinstance(text, str):
        raise InputError("answer: is missing; a row needs `answer`, or messages that end with the assistant's")
    domain = row.get("domain", "helpfulness")
    if domain not in get_args(Domain):
        raise InputError(f"domain: must be one of {', '.join(get_args(Domain))}, got {domain!r}")
    gold = row.get("gold")
    return Given(
        check_conversation(messages, last="user"), domain, text.strip(), gold if isinstance(gold, dict) else None
    )


def name_of(path: Path) -> str:
    """Of the version, as its evaluation says; else of the file or folder."""
    name = read_object(path / "evaluation.json").get("name")
    return name if isinstance(name, str) and name else path.name if path.is_dir() else path.stem


def read_object(file: Path) -> dict[str, Any]:
    """What a JSON file says; empty where there is none."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
