"""Ghost Attention: dialogues that obey an instruction to the end (Llama 2 paper, section 3.3).

It is a way to make data, not a kind of attention. A model that is told the instruction in every turn answers; what it
answered is trained on with the instruction in the first turn only, and with no loss on the turns before the last answer
(`rlhf.conversation.renderer.Renderer.dialogue(..., train="last")`). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf.conversation import Conversation, Message, with_thoughts
from rlhf.sampling.protocol import Sample

KEYS_PER_DIALOGUE = 1000  # answer t of dialogue i is drawn with the key 1000 i + t, the same in any company


class Ask(Protocol):
    """Draws one answer to each prompt; `keys` decide the draws (`rlhf.sampling.protocol.Sampler`)."""

    def __call__(self, prompts: Sequence[Conversation], keys: Sequence[int]) -> list[Sample]: ...


Fits = Callable[[Sequence[Conversation]], Sequence[bool]]


def _all_fit(prompts: Sequence[Conversation]) -> Sequence[bool]:
    return [True] * len(prompts)


@dataclass(frozen=True)
class Answered:
    """A dialogue that a model answered.

    Args:
        messages: without instruction; the last one is the model's.
        finished: the last answer came to its end.
        thoughts: what the model thought before its last answer; no message has any.
    """

    messages: Conversation
    finished: bool
    thoughts: str = ""

    @property
    def trained(self) -> Conversation:
        """The messages to train on: the last answer with its thoughts (decision 61)."""
        if not self.messages:
            return []
        last = self.messages[-1]
        return [*self.messages[:-1], {**last, "content": with_thoughts(self.thoughts, last["content"])}]


def with_instruction(message: Message, instruction: str) -> Message:
    """The message with the instruction before its text, parted by a space."""
    return {"role": message["role"], "content": f"{instruction} {message['content']}"}


def sampling_context(messages: Conversation, instruction: str) -> Conversation:
    """The dialogue as the sampling model sees it: the instruction stands before EVERY user message."""
    return [with_instruction(m, instruction) if m["role"] == "user" else m for m in messages]


def training_context(messages: Conversation, instruction: str) -> Conversation:
    """The dialogue as it is trained on: the instruction stands before the FIRST user message alone."""
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    return [with_instruction(m, instruction) if i == first else m for i, m in enumerate(messages)]


def turns_of(messages: Conversation) -> int:
    """How many user messages a dialogue has."""
    return sum(message["role"] == "user" for message in messages)


def answer_dialogues(
    dialogues: Sequence[Conversation],
    instructions: Sequence[str],
    context: Callable[[Conversation, str], Conversation],
    ask: Ask,
    fits: Fits = _all_fit,
    *,
    whole: bool = False,
) -> list[Answered]:
    """Let a model give all answers, turn after turn; its earlier ones are the history of the later (decision 43).

    Args:
        dialogues: their system and user messages stay, their answers are not read.
        instructions: one a dialogue.
        context: how a dialogue with its instruction is shown to the model: `sampling_context` to make data,
            `training_context` to see whether a model remembers.
        ask: asks all dialogues' prompts of one turn at once.
        fits: which prompts leave room for an answer in the model's context. A dialogue ends before one that does not;
            one whose first prompt does not fit has no answer at all and is returned without any message.
        whole: so is one that ends before its last turn.
    """
    answered = [Answered([], False) for _ in dialogues]
    history: list[Conversation] = [[] for _ in dialogues]
    users = [[m for m in messages if m["role"] == "user"] for messages in dialogues]
    going = list(range(len(dialogues)))
    for turn in range(max(map(len, users), default=0)):
        going = [i for i in going if turn < len(users[i])]
        for i in going:
            system = [m for m in dialogues[i][:1] if m["role"] == "system"] if turn == 0 else []
            history[i] += [*system, users[i][turn]]
        prompts = {i: context(history[i], instructions[i]) for i in going}
        going = [i for i, ok in zip(going, fits([prompts[i] for i in going]), strict=True) if ok]
        if not going:
            break
        samples = ask([prompts[i] for i in going], [KEYS_PER_DIALOGUE * i + turn for i in going])
        for i, sample in zip(going, samples, strict=True):
            history[i].append({"role": "assistant", "content": sample.text})
            answered[i] = Answered(list(history[i]), sample.finished, sample.thoughts)
    for i, own in enumerate(users):
        if whole and turns_of(answered[i].messages) < len(own):
            answered[i] = Answered([], False)
    return answered


def answer_last_turns(
    dialogues: Sequence[Conversation], instructions: Sequence[str], ask: Ask, fits: Fits = _all_fit
) -> list[Answered]:
    """Let a model give the last answer only; the given ones before it stay, whether they obey or not.

    Arguments and result as for `answer_dialogues`; a dialogue that does not fit is returned without any message.
    """
    asked = [d[:-1] if d[-1]["role"] == "assistant" else d for d in dialogues]
    contexts = [sampling_context(messages, text) for messages, text in zip(asked, instructions, strict=True)]
    going = [i for i, ok in enumerate(fits(contexts)) if ok]
    answered = [Answered([], False) for _ in dialogues]
    samples = ask([contexts[i] for i in going], [KEYS_PER_DIALOGUE * i for i in going])
    for i, sample in zip(going, samples, strict=True):
        messages: Conversation = [*asked[i], {"role": "assistant", "content": sample.text}]
        answered[i] = Answered(messages, sample.finished, sample.thoughts)
    return answered
