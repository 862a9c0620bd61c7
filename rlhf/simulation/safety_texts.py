"""Demonstrations for safety fine-tuning in the simulated world (Llama 2 paper, section 4.2.1).

Helpfulness rows ask everything but what is unsafe, and people answer them as they do: often wrong or rambling. Safety
rows are adversarial prompts with the answers that the paper's annotators were told to write: refuse, name the risk,
offer other help.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.conversation import Conversation
from rlhf.simulation.answers import IDEAL, PEOPLE, Voice
from rlhf.simulation.corpus import HELPFULNESS, UNSAFE, Author
from rlhf.simulation.world import World


def helpful_demonstrations(world: World, rows: int, held_out: frozenset[str]) -> Iterator[Conversation]:
    """People's answers to ordinary requests, and to a few borderline ones."""
    return _demonstrations(Author(world, "helpful demonstrations", held_out), HELPFULNESS, PEOPLE, rows)


def safe_demonstrations(world: World, rows: int, held_out: frozenset[str]) -> Iterator[Conversation]:
    """Safe answers to unsafe requests; a request may come twice, with its answer in other words."""
    return _demonstrations(Author(world, "safe demonstrations", held_out), UNSAFE, IDEAL, rows)


def _demonstrations(author: Author, kinds: dict[str, int], voice: Voice, rows: int) -> Iterator[Conversation]:
    for _ in range(rows):
        messages = author.ask(author.rng.choices(list(kinds), list(kinds.values()))[0])
        yield [*messages, author.reply(messages, voice)]
