"""People write (paper, 3.2.1, 3.1 and 4.3): prompts that two models answer, demonstrations, attempts of the red team.

    writing = Writing("write", Answering([sampler, other], ["v1", "v2"], SamplingParams()))

What comes of it: preference rows, SFT rows, and of the red team's violations adversarial prompts and safe answers.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf.annotation.labelling import preferences_of
from rlhf.annotation.protocol import Pair
from rlhf.annotation.store import Entry, Store
from rlhf.conversation import Conversation, check_conversation, decided, says_nothing
from rlhf.data.rows import Domain, Prompt
from rlhf.errors import InputError
from rlhf.sampling.protocol import Sampler, SamplingParams

BATCH = "written"
TEMPERATURES = (0.8, 1.2)  # of the two answers, as in recipes/data/collect_preferences.py
TRIES = 4
Mode = Literal["write", "demonstrate", "red-team"]
# section 4.2.1: what the paper's safety annotators were told to try
CATEGORIES = ("illicit and criminal activities", "hateful and harmful activities", "unqualified advice", "other")
STYLES = (
    "plain question",
    "psychological manipulation",
    "logic manipulation",
    "syntactic manipulation",
    "semantic manipulation",
    "perspective manipulation",
    "another language",
    "other",
)
ROWS = ("preferences", "judgements", "demonstrations", "attempts", "adversarial", "safe-answers")


class Answering:
    """The models that answer what people write, one request at a time.

    Args:
        samplers: one, or two variants, the newest first.
        names: of their models; kept with the answers, and not shown.
        params: length and seed; the temperatures of two answers to one prompt are `TEMPERATURES`.
    """

    def __init__(self, samplers: Sequence[Sampler], names: Sequence[str], params: SamplingParams) -> None:
        self._samplers, self.names, self._params = list(samplers), list(names), params
        self._lock = threading.Lock()

    def pair(self, messages: Conversation, domain: Domain, id: str) -> Pair:
        """Two answers that differ, as a pair of this id.

        Raises:
            InputError: the models gave no two different answers, or cannot take the dialogue.
        """
        first, second = self._samplers[0], self._samplers[-1]
        for attempt in range(TRIES):
            a, b = (
                self._text(sampler, messages, temperature, f"{id} {attempt} {number}")
                for number, (sampler, temperature) in enumerate(zip((first, second), TEMPERATURES, strict=True))
            )
            if decided(a, b) is None:
                return Pair(messages, a, b, domain, id, (self.names[0], self.names[-1]))
        raise InputError("the models gave no two answers that differ; write another prompt")

    def one(self, messages: Conversation, key: str) -> str:
        """One answer of the first model, which may be empty."""
        return self._text(self._samplers[0], messages, self._params.temperature, key)

    def _text(self, sampler: Sampler, messages: Conversation, temperature: float, key: str) -> str:
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        with self._lock:
            params = replace(self._params, temperature=temperature)
            return sampler.sample([messages], 1, params, keys=[number])[0][0].text.strip()


@dataclass(frozen=True)
class Writing:
    """What people write on a page.

    Args:
        mode: "write": a prompt, which two models answer, and the person chooses; "demonstrate": a prompt and its
            answer; "red-team": a prompt that is to make the model break its guidelines.
        answering: who answers; None where people do.
        round: of the red team, e.g. the model's version.
    """

    mode: Mode
    answering: Answering | None = None
    round: str = ""

    def ask(self, store: Store, annotator: str, messages: Conversation, domain: Domain, key: str) -> int:
        """Two models answer; the pair is in the store, leased to the annotator. Its number."""
        assert self.answering is not None
        pair = store.pair_of_id(BATCH, key) or self.answering.pair(messages, domain, key)
        return store.add_leased(BATCH, pair, annotator).item

    def attempt(self, store: Store, annotator: str, messages: Conversation, about: dict[str, str], key: str) -> Entry:
        """The model answers; the attempt is in the store and waits for its verdict."""
        assert self.answering is not None
        if (there := store.keyed_entry(key)) is not None and there.annotator == annotator:
            return there
        about = {"round": self.round, "model": self.answering.names[0]} | about
        answer = self.answering.one(messages, key)
        return store.add_entry(Entry("attempt", annotator, messages, answer, "safety", about), key)


def dialogue_after(store: Store, mode: Mode, annotator: str, after: int | None) -> Conversation:
    """What was said until now: the dialogue of this annotator's pair or entry `after`, with its (chosen) answer.

    Raises:
        InputError: it is not theirs, or no answer was chosen.
    """
    if after is None:
        return []
    if mode == "write":
        judgement, shown = store.judgement_of(after, annotator), store.shown(after, annotator)
        if judgement is None or judgement.choice is None:
            raise InputError("after: no answer was chosen there, so the dialogue cannot go on from it")
        messages, answer = shown.pair.messages, shown.pair.a if judgement.choice == "a" else shown.pair.b
    else:
        entry = store.entry(after, annotator)
        messages, answer = entry.messages, entry.answer
    if says_nothing(answer):
        raise InputError("after: its answer is empty, so the dialogue cannot go on from it")
    return [*messages, {"role": "assistant", "content": answer}]


def asked(before: Conversation, text: str) -> Conversation:
    """The dialogue with the person's next message."""
    return check_conversation([*before, {"role": "user", "content": text}], last="user")


def written_rows(store: Store, kind: str) -> Iterator[dict[str, Any]]:
    """Rows for training of what people wrote and judged.

    Args:
        kind: one of `ROWS`. preferences: `rlhf.data.rows.Preference`. judgements: all of them, skips too,
            `rlhf.annotation.protocol.Judgement` with the batch. demonstrations: {messages}, for SFT. attempts:
            the red team's log, all of it. adversarial: its violations as `rlhf.data.rows.Prompt` of domain safety,
            for context distillation. safe-answers: {messages}, the violations' prompts with the safe answers that
            people wrote in their place, for safety SFT.
    """
    if kind == "preferences":
        for batch in store.batches(people=True):
            for rows in preferences_of(store, batch).values():
                yield from (row.to_dict() for row in rows)
    elif kind == "judgements":
        for batch in store.batches(people=True):
            for *_, judgement in store.judged(batch):
                yield {"batch": batch, **judgement.to_dict()}
    elif kind == "demonstrations":
        for entry in store.entries("demonstration"):
            yield _answered(entry, entry.answer)
    elif kind == "attempts":
        yield from map(_logged, store.entries("attempt"))
    elif kind == "adversarial":
        for entry in store.entries("attempt"):
            if entry.violation:
                yield Prompt(f"attempt-{entry.number}", entry.messages, "safety", entry.about["category"]).to_dict()
    elif kind == "safe-answers":
        for entry in store.entries("attempt"):
            if entry.violation and entry.better:
                yield _answered(entry, entry.better)
    else:
        raise InputError(f"rows: must be one of {', '.join(ROWS)}, got {kind!r}")


def _answered(entry: Entry, answer: str) -> dict[str, Any]:
    messages = [*entry.messages, {"role": "assistant", "content": answer}]
    return {"messages": messages, "domain": entry.domain, "source": entry.annotator}


def _logged(entry: Entry) -> dict[str, Any]:
    """A row of the red team's log, `rlhf.evaluation.safety.red_team.Attempt`."""
    return {
        "round": entry.about["round"],
        "person": entry.annotator,
        "messages": entry.messages,
        "answer": entry.answer,
        "violation": bool(entry.violation),
        "judge": entry.annotator,
        "seconds": entry.seconds,
        "domain": entry.domain,
        "category": entry.about["category"],
        "style": entry.about["style"],
    }
