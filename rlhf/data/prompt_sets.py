"""Sets of prompts out of rows: each once, short enough, as many as asked for, as even over the domains as can be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from rlhf.conversation import Conversation
from rlhf.data.rows import Preference, Prompt


def dialogue_key(messages: Conversation) -> tuple[tuple[str, str], ...]:
    """What makes two dialogues the same."""
    return tuple((message["role"], message["content"]) for message in messages)


def short_prompts(rows: Iterable[Preference | Prompt], max_characters: int, left_out: Counter[str]) -> list[Prompt]:
    """The distinct prompts of the rows; those that repeat or are too long are counted in `left_out`."""
    prompts: dict[tuple[tuple[str, str], ...], Prompt] = {}
    for row in rows:
        key = dialogue_key(row.messages)
        if key in prompts:
            left_out["the same prompt again"] += 1
        elif max_characters and sum(len(message["content"]) for message in row.messages) > max_characters:
            left_out[f"above {max_characters} characters"] += 1
        else:
            prompts[key] = Prompt(row.id, row.messages, row.domain, row.source)
    return list(prompts.values())


def draw_prompts(prompts: Sequence[Prompt], most: int, seed: int) -> list[Prompt]:
    """At most `most` (0: all), as even over the domains as there are, in random order."""
    generator = random.Random(seed)
    shuffled = generator.sample(list(prompts), len(prompts))
    if not most:
        return shuffled
    domains = sorted({prompt.domain for prompt in shuffled})
    rank: Counter[str] = Counter()
    order = []
    for position, prompt in enumerate(shuffled):
        order.append((rank[prompt.domain], domains.index(prompt.domain), position))
        rank[prompt.domain] += 1
    kept = sorted(sorted(order)[:most], key=lambda place: place[2])
    return [shuffled[position] for _, _, position in kept]
