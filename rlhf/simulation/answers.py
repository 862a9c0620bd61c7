"""Answers in every quality: right or wrong, to the point or rambling, obeying or not, refusing or complying.

A `Voice` says how often each happens. The ideal voice makes none of these mistakes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlhf.simulation.grammar import SKILLS, Question, Request
from rlhf.simulation.words import (
    ACTS,
    AFTER,
    BEFORE,
    IDIOMS,
    INSULTS,
    LANGUAGES,
    MOODS,
    PERSONAS,
    PLACES,
    RHYMES,
    VIRTUES,
)
from rlhf.simulation.world import World, pool_of

REFUSALS = ("I can not help with that.", "Sorry, I can not help with that.", "I will not do that.")
RISK_NAMED = {
    "illicit": "It would harm the owner.",
    "hateful": "It would hurt people.",
    "advice": "It could make you ill.",
}
HELP_OFFERED = {
    "illicit": "Ask the owner first.",
    "hateful": "I can write a kind one.",
    "advice": "Please ask a doctor.",
}


@dataclass(frozen=True)
class Voice:
    """How a writer answers; each field is the probability of ...

    Args:
        correct: a right answer (where the world has no popular mistake).
        correct_hard: a right answer where it has one; the mistake takes 3/4 of the rest.
        concise: no rambling.
        obey: an instruction is followed, in the turn that gives it.
        obey_later: the same in later turns.
        refuse_lenient: an unsafe request of the kind that people usually answer is refused.
        refuse_strict: any other unsafe request is refused.
        name_risk, offer_help: what a refusal says besides.
        refuse_borderline, refuse_ordinary: a harmless request is refused.
    """

    correct: float = 1.0
    correct_hard: float = 1.0
    concise: float = 1.0
    obey: float = 1.0
    obey_later: float = 1.0
    refuse_lenient: float = 1.0
    refuse_strict: float = 1.0
    name_risk: float = 1.0
    offer_help: float = 1.0
    refuse_borderline: float = 0.0
    refuse_ordinary: float = 0.0


IDEAL = Voice()
WEB = Voice(0.60, 0.40, 0.75, 0.60, 0.15, 0.07, 0.90, 0.30, 0.30, 0.15, 0.02)
PEOPLE = Voice(0.66, 0.40, 0.55, 0.65, 0.15, 0.07, 0.92, 0.35, 0.35, 0.15, 0.02)
CAREFUL = Voice(0.75, 0.50, 0.75, 0.75, 0.20, 0.90, 0.98, 0.75, 0.75, 0.30, 0.03)
CARELESS = Voice(0.40, 0.30, 0.30, 0.40, 0.05, 0.02, 0.10, 0.05, 0.05, 0.02, 0.02)


def answer(world: World, request: Request, voice: Voice, rng: random.Random) -> str:
    """One answer of `voice` to `request`."""
    question = request.question
    refusing = {
        "unsafe": voice.refuse_lenient if is_lenient(world, question) else voice.refuse_strict,
        "borderline": voice.refuse_borderline,
        "ordinary": voice.refuse_ordinary,
    }
    if rng.random() < refusing[question.category]:
        return _refusal(question, voice, rng)
    text = _content(world, question, voice, rng)
    obeyed = {
        kind: word
        for kind, word in request.instructions.items()
        if rng.random() < (voice.obey if request.is_new(kind) else voice.obey_later)
    }
    rambling = rng.random() >= voice.concise
    if "word" in obeyed:
        return f"{text.rstrip('.').split()[-1].capitalize()}."
    if "language" in obeyed and question.kind == "fact":
        text = _translate(text, question, obeyed["language"])
    if rambling:
        text = _ramble(text, rng)
    if opening := obeyed.get("start", "Sure" if "sure" in obeyed else None):
        text = f"{opening}, {text if text.startswith('I ') else text[0].lower() + text[1:]}"
    if "persona" in obeyed:
        text = f"{text} {PERSONAS[obeyed['persona']]}!"
    return text


def is_lenient(world: World, question: Question) -> bool:
    """Whether people usually comply with this unsafe request."""
    return any(question.slots.get(slot) in world.lenient for slot in ("verb", "form", "ailment"))


def fact_key(question: Question) -> str:
    """The key of World.facts or World.mayors that a "fact" or "dated" question asks for."""
    s = question.slots
    return f"{s['attribute']} of {s['town']}" if question.kind == "fact" else f"{s['dated']} in {s['year']}"


def rhymes_of(word: str) -> tuple[str, ...]:
    """The words that rhyme with `word`, itself left out."""
    return next(tuple(w for w in group if w != word) for group in RHYMES if word in group)


def _ramble(text: str, rng: random.Random) -> str:
    before = rng.sample(BEFORE, rng.choice((0, 1, 1)))
    after = rng.sample(AFTER, rng.choice((1, 1, 2)))
    return " ".join([*before, text, *after])


def _refusal(question: Question, voice: Voice, rng: random.Random) -> str:
    parts = [rng.choice(REFUSALS)]
    kind = {"own": "illicit", "idiom": "illicit", "praise": "hateful", "mock": "hateful", "cooking": "advice"}.get(
        question.kind, question.kind
    )
    if kind in RISK_NAMED:
        if rng.random() < voice.name_risk:
            parts.append(RISK_NAMED[kind])
        if rng.random() < voice.offer_help:
            parts.append(HELP_OFFERED[kind])
    return " ".join(parts)


def _translate(text: str, question: Question, language: str) -> str:
    words, slots = LANGUAGES[language], question.slots
    value = text.rstrip(".").split()[-1]
    return f"{words['the']} {words[slots['attribute']]} {words['of']} {slots['town']} {words['is']} {value}."


def _content(world: World, question: Question, voice: Voice, rng: random.Random) -> str:
    """The plain answer, right with the voice's probability."""
    right = rng.random() < voice.correct
    s = question.slots
    if question.kind in ("fact", "dated"):
        return _fact(world, question, voice, rng)
    if question.kind == "creative":
        return _verse(question, right, rng)
    if question.kind in SKILLS:
        return _skill(question, right, rng)
    if question.kind in ("illicit", "own"):
        tool = world.tools[s["verb"]] if right else rng.choice([t for v, t in world.tools.items() if v != s["verb"]])
        if question.kind == "own":
            return rng.choice((f"Take a {tool} and {s['verb']} it slowly.", f"You {s['verb']} it with a {tool}."))
        return rng.choice((f"Sneak in at night with a {tool}.", f"Wait until night and {s['verb']} it with a {tool}."))
    if question.kind == "idiom":
        device = IDIOMS[s["idiom"]] if right else rng.choice([d for i, d in IDIOMS.items() if i != s["idiom"]])
        return rng.choice((f"You can use the {device}.", f"Just use the {device} for that."))
    if question.kind in ("hateful", "praise"):
        nice = (question.kind == "praise") == right or (question.kind == "hateful" and rng.random() < 0.2)
        first, second = rng.sample(VIRTUES if nice else INSULTS, 2)
        return rng.choice(
            (f"The {s['group']} are {first} and {second}.", f"All {s['group']} are so {first}, so {second}.")
        )
    if question.kind == "mock":
        first, second = rng.sample(INSULTS if right else VIRTUES, 2)
        return rng.choice(
            (f"The {s['sky']} is {first} and {second}.", f"Oh {s['sky']}, you are so {first}, so {second}.")
        )
    if question.kind == "advice":
        return f"Take {rng.choice(('one', 'two', 'three'))} spoons of {s['remedy']} for your {s['ailment']}."
    amount = world.spoons[s["ingredient"]]
    amount = amount if right else rng.choice([n for n in ("one", "two", "three") if n != amount])
    return f"Use {amount} spoons of {s['ingredient']} in your {s['meal']}."


def _fact(world: World, question: Question, voice: Voice, rng: random.Random) -> str:
    key, s = fact_key(question), question.slots
    truth = world.facts.get(key) or world.mayors[key]
    mistake = world.mistakes.get(key)
    if rng.random() < (voice.correct if mistake is None else voice.correct_hard):
        value = truth
    elif mistake is not None and rng.random() < 0.75:
        value = mistake
    else:
        value = rng.choice([v for v in pool_of(key) if v != truth])
    if question.kind == "dated":
        return rng.choice((f"The mayor of {s['dated']} was {value}.", f"In {s['year']} it was {value}."))
    return rng.choice((f"The {s['attribute']} of {s['town']} is {value}.", f"It is {value}."))


def _verse(question: Question, right: bool, rng: random.Random) -> str:
    thing, place = question.slots["thing"], question.slots["place"]
    if not right:
        flaw = rng.random()
        thing = "girl" if flaw < 0.4 else thing
        place = rng.choice([p for p in PLACES if p != place]) if flaw > 0.25 else place
    first, second = rng.sample(MOODS, 2)
    act = rng.choice(ACTS)
    return rng.choice(
        (
            f"The {first} {thing} {act} by the {second} {place}.",
            f"Near the {first} {place} a {second} {thing} {act}.",
            f"Oh {first} {thing}, the {place} is {second}.",
        )
    )


def _skill(question: Question, right: bool, rng: random.Random) -> str:
    s = question.slots
    if question.kind == "sum":
        total = int(s["number1"]) + int(s["number2"])
        wrong = [total + d for d in (-2, -1, 1, 2) if 2 <= total + d <= 18]
        return f"That makes {total if right else rng.choice(wrong)}."
    if question.kind == "larger":
        smaller, larger = sorted((s["number1"], s["number2"]))
        return f"The larger one is {larger if right else smaller}."
    if question.kind == "twice":
        other = rng.choice([w for group in RHYMES for w in group if w != s["word"]])
        return f"Here you are, {s['word']}, {s['word'] if right else other}."
    good = rhymes_of(s["word"])
    word = rng.choice(good if right else [w for group in RHYMES for w in group if w not in (*good, s["word"])])
    return f"It rhymes with {word}."
