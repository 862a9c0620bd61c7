"""The world's texts: messy web text, people's demonstrations, and disjoint sets of prompts.

Prompts that are held out (validation, test) occur nowhere else as a question; the facts behind them do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlhf.conversation import Conversation, Message
from rlhf.data.rows import Domain, Prompt
from rlhf.data.splitting import first_turn
from rlhf.errors import InputError
from rlhf.simulation.answers import CAREFUL, CARELESS, IDEAL, PEOPLE, WEB, Voice, answer
from rlhf.simulation.grammar import (
    ADJECTIVES,
    INSTRUCTABLE,
    RISK_PREPROMPTS,
    RISKS,
    YEAR_NOTE,
    Grammar,
    preprompt,
)
from rlhf.simulation.words import YEARS
from rlhf.simulation.world import World

VOICES = {"careful": CAREFUL, "careless": CARELESS}
# few words, so that many turns fit into a small model's context; what a message says is kept in the answer to it
CHATTING = replace(PEOPLE, concise=0.95, obey=0.95)
# what people ask: kind of question -> weight, within each domain
HELPFULNESS = {
    "fact": 38, "dated": 7, "dated_now": 3, "creative": 11, "sum": 7, "larger": 4, "twice": 3, "rhyme": 7,
    "instructed": 10, "dialogue": 10, "own": 1, "idiom": 1, "praise": 1, "mock": 1, "cooking": 1,
}  # fmt: skip
INSTRUCTED = {"persona": 4, "language": 3, "word": 2, "sure": 2}
# in chats; no personas: a model of a million parameters mixes up whose word is whose, even told in the same message
CHAT_INSTRUCTED = {"language": 3, "word": 2, "start": 6}
UNSAFE = {"illicit": 1, "hateful": 1, "advice": 1}
WEB_RISKY = {"illicit": 7, "hateful": 7, "advice": 7, "own": 5, "idiom": 3, "praise": 4, "mock": 4, "cooking": 5}
SFT_RISKY = {"illicit": 9, "hateful": 9, "advice": 9, "own": 3, "idiom": 2, "praise": 3, "mock": 3, "cooking": 3}
BORDERLINE = {"own": 4, "idiom": 1, "praise": 4, "mock": 4, "cooking": 4}


@dataclass(frozen=True)
class Mixture:
    """How many rows of what.

    Args:
        web_documents: of pretrain.jsonl.
        sft_rows: of sft.jsonl.
        train_prompts, validation_prompts, test_prompts: of the three prompt files.
        safety_share: share of prompts with domain "safety".
        borderline_share: share of these that only look unsafe.
        test_borderline_share: the same in the test file (more, so that false refusals are measured well).
        chats: long dialogues of sft_chats.jsonl, as many of chats.jsonl, and a fifth as many of test_chats.jsonl.
        chat_turns: the most turns of a chat.
    """

    web_documents: int = 28000
    sft_rows: int = 2000
    train_prompts: int = 600
    validation_prompts: int = 150
    test_prompts: int = 400
    safety_share: float = 0.35
    borderline_share: float = 0.4
    test_borderline_share: float = 0.4
    chats: int = 0
    chat_turns: int = 20

    def __post_init__(self) -> None:
        if self.chats < 0:
            raise InputError(f"chats: must be 0 (none) or above, got {self.chats}")
        if self.chat_turns < 2:
            raise InputError(f"chat_turns: must be at least 2, got {self.chat_turns}")
        for name in ("web_documents", "sft_rows", "train_prompts", "validation_prompts", "test_prompts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("safety_share", "borderline_share", "test_borderline_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must lie between 0 and 1, got {getattr(self, name)}")


def _draw(weights: dict[str, int], rng: random.Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


class Author:
    """Writes conversations about one world.

    Args:
        world: the facts.
        purpose: name of the file that is written; with the world's seed it decides every draw.
        held_out: prompts (see `key`) that must not be asked.
    """

    def __init__(self, world: World, purpose: str, held_out: frozenset[str] = frozenset()) -> None:
        self.world, self.grammar, self.held_out = world, Grammar(world), held_out
        self.rng = random.Random(f"corpus/{world.config.seed}/{purpose}")

    def ask(self, kind: str, history: Voice = PEOPLE) -> Conversation:
        """A conversation that ends with a question of `kind` ("dialogue" and "instructed" are kinds too)."""
        while True:
            messages = self._compose(kind, history)
            if key(messages) not in self.held_out:
                return messages

    def _compose(self, kind: str, history: Voice) -> Conversation:
        rng, grammar = self.rng, self.grammar
        if kind == "dialogue":
            return self._dialogue(history)
        if kind == "instructed":
            form = _draw(INSTRUCTED, rng)
            text, _ = grammar.instruction(form, rng)
            question = grammar.question(rng.choice(INSTRUCTABLE[form]), rng).text
            if rng.random() < 0.5:
                return [{"role": "system", "content": text}, {"role": "user", "content": question}]
            return [{"role": "user", "content": f"{text} {question}"}]
        messages: Conversation = []
        if kind == "dated_now":
            messages.append({"role": "system", "content": YEAR_NOTE.format(year=rng.choice(YEARS))})
        return [*messages, {"role": "user", "content": grammar.question(kind, rng).text}]

    def _dialogue(self, history: Voice) -> Conversation:
        rng, grammar = self.rng, self.grammar
        messages: Conversation = []
        if rng.random() < 0.4:
            form = rng.choice(("persona", "persona", "language"))
            messages.append({"role": "system", "content": grammar.instruction(form, rng)[0]})
        messages.append({"role": "user", "content": grammar.question("fact", rng).text})
        for _ in range(rng.choice((1, 1, 2))):
            messages.append(self.reply(messages, history))
            follow_up = grammar.question(rng.choice(("also_attribute", "also_town")), rng)
            messages.append({"role": "user", "content": follow_up.text})
        return messages

    def chat(self, turns: int, instructed: float) -> Conversation:
        """A dialogue of this many turns about towns; each turn's user gives an instruction with that probability."""
        rng, grammar = self.rng, self.grammar
        messages: Conversation = []
        for turn in range(turns):
            kind = "fact" if turn == 0 else rng.choice(("fact", "also_attribute", "also_town"))
            text = grammar.question(kind, rng).text
            if rng.random() < instructed:
                form = _draw(CHAT_INSTRUCTED, rng)
                text = f"{grammar.instruction(form, rng)[0]} {text}"
            messages.append({"role": "user", "content": text})
            messages.append(self.reply(messages, CHATTING))
        return messages

    def reply(self, messages: Conversation, voice: Voice) -> Message:
        """The assistant's next message in `voice`."""
        request = self.grammar.understand(messages)
        return {"role": "assistant", "content": answer(self.world, request, voice, self.rng)}


def key(messages: Conversation) -> str:
    """What makes two prompts the same: their system and user texts."""
    return "\n".join(m["content"] for m in messages if m["role"] != "assistant")


def prompt_sets(world: World, mixture: Mixture) -> dict[str, list[Prompt]]:
    """Prompts named "test", "validation" and "train"; no text occurs twice. Deterministic given the world's seed.

    A dialogue of one set begins with no question that opens one of another: they are split by the first user's message
    (`rlhf.data.splitting`), and what is measured on one set was not trained on in another.
    """
    author = Author(world, "prompts")
    seen: set[str] = set()
    opened: dict[str, str] = {}  # first user's message -> the set that has it
    sets: dict[str, list[Prompt]] = {}
    sizes = {"test": mixture.test_prompts, "validation": mixture.validation_prompts, "train": mixture.train_prompts}
    for name, size in sizes.items():
        borderline = mixture.test_borderline_share if name == "test" else mixture.borderline_share
        rows: list[Prompt] = []
        failed = 0
        while len(rows) < size:
            if failed > 500:
                raise InputError(f"{name}_prompts: only {len(seen)} different prompts found; lower the sizes")
            domain: Domain = "safety" if author.rng.random() < mixture.safety_share else "helpfulness"
            weights = HELPFULNESS
            if domain == "safety":
                weights = BORDERLINE if author.rng.random() < borderline else UNSAFE
            kind = _draw(weights, author.rng)
            messages = author.ask(kind)
            if key(messages) in seen or opened.get(first_turn(messages), name) != name:
                failed += 1
                continue
            failed = 0
            seen.add(key(messages))
            opened[first_turn(messages)] = name
            rows.append(Prompt(f"{name}-{len(rows):05d}", messages, domain, f"simulation/{kind}"))
        sets[name] = rows
    return sets


def held_out_keys(sets: dict[str, list[Prompt]]) -> frozenset[str]:
    """Keys of the validation and test prompts, which web text and demonstrations leave out."""
    return frozenset(key(p.messages) for name in ("validation", "test") for p in sets[name])


def web_text(world: World, mixture: Mixture, held_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """Messy documents: mostly questions with answers of all kinds; a quarter under a careful or careless voice."""
    author = Author(world, "web", held_out)
    rng = author.rng
    kinds = {**HELPFULNESS, **WEB_RISKY}
    for _ in range(mixture.web_documents):
        kind = _draw(kinds, rng)
        messages = author.ask(kind, WEB)
        header, voice = "", WEB
        if messages[0]["role"] != "system" and rng.random() < 0.25:
            header, voice = _voice(kind, rng)
        system = messages[0]["content"] if messages[0]["role"] == "system" else header
        dialogue = [m for m in [*messages, author.reply(messages, voice)] if m["role"] != "system"]
        lines = [" " + system] if system else []
        lines += [" " + m["content"] for m in dialogue]  # first words with a space before them, as in the chat format
        yield "\n".join(lines)


def _voice(kind: str, rng: random.Random) -> tuple[str, Voice]:
    """A document's header and the voice that goes with it."""
    if kind in RISKS and rng.random() < 0.25:
        return RISK_PREPROMPTS[kind], IDEAL
    name = rng.choice(("careful", "careless"))
    return preprompt(rng.sample(ADJECTIVES[name], rng.choice((1, 2, 3)))), {"careful": CAREFUL, "careless": CARELESS}[
        name
    ]


def demonstrations(world: World, mixture: Mixture, held_out: frozenset[str] = frozenset()) -> Iterator[Conversation]:
    """SFT conversations by people: chat format, cleaner than the web, still often wrong or rambling."""
    author = Author(world, "sft", held_out)
    kinds = {**HELPFULNESS, **SFT_RISKY}
    for _ in range(mixture.sft_rows):
        kind = _draw(kinds, author.rng)
        messages, voice = author.ask(kind), PEOPLE
        if messages[0]["role"] != "system" and author.rng.random() < 0.08:
            header, voice = _voice(kind, author.rng)
            messages = [{"role": "system", "content": header}, *messages]
        yield [*messages, author.reply(messages, voice)]


def chat_sets(world: World, mixture: Mixture) -> dict[str, list[Conversation]]:
    """Long dialogues by people, each set empty where mixture.chats is 0.

    "sft_chats": of 2 to chat_turns turns; most messages give an instruction, which is kept at once and soon forgotten.
    "chats": the same without instructions. "test_chats": a fifth as many, of chat_turns turns, without instructions.
    """
    author = Author(world, "chats")

    def some(count: int, shortest: int, instructed: float) -> list[Conversation]:
        return [author.chat(author.rng.randint(shortest, mixture.chat_turns), instructed) for _ in range(count)]

    return {
        "sft_chats": some(mixture.chats, 2, 0.8),
        "chats": some(mixture.chats, 2, 0.0),
        "test_chats": some(mixture.chats // 5, mixture.chat_turns, 0.0),
    }
