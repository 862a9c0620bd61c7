"""Conversations -> token ids and loss masks, cut to a length (`rlhf.conversation.shortening`).

A prompt is rendered once, with an invisible mark at the end of every user's and assistant's message; the marks say
where each answer begins and ends, and a last answer is written behind its prompt. The text is cut there and every piece
is tokenized by itself. So what is trained starts with exactly the ids that sampling starts from, whatever the tokenizer
would have merged across the seam, and a message that spells out a special token is text, never that token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from rlhf.conversation.messages import (
    THOUGHT_OPENS,
    Conversation,
    Message,
    check_conversation,
    split_thoughts,
    without_thoughts,
)
from rlhf.conversation.pieces import Pieces
from rlhf.conversation.shortening import Measured, Rendered, Shortener
from rlhf.conversation.writing import CUT, END, read_writing, render
from rlhf.errors import InputError, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE: Conversation = [
    {"role": "user", "content": "What is 2 plus 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "And 4 plus 4?"},
    {"role": "assistant", "content": "It is 8."},
]


class Answer(NamedTuple):
    """What sampled ids say: the answer as a user reads it, and what was thought before it (mostly nothing)."""

    text: str
    thoughts: str


class Renderer:
    """Turns conversations into ids with the tokenizer's own chat template, and answers' ids back into text.

    White space around a message is dropped; an answer may be empty, as a model may end at once. A template that writes
    nothing behind an answer gets the tokenizer's end token there; one that writes a text which is no token is refused.
    Where the tokenizer puts a begin token before any text and the template writes none, one is put first.

    Thoughts stand in a last answer as `<think>…</think>` before its text, and are written as the template writes them;
    those of earlier answers are dropped, as templates do. An answer without any is written as the template writes that.

    Args:
        tokenizer: with a chat template and a pad token.
        max_length: most ids of a prompt or a dialogue; whole oldest turns are dropped to get there, the system
            message, the last user's message and the answer stay, and what is still too long is an InputError.
            None: no limit.
        cut: what is still too long loses text instead: the longer of the system message and the last user's message
            its beginning, and when nothing is left there, the answer its own. The template stays whole.

    Raises:
        InputError: no chat template or no pad token; a template whose prompt is not the beginning of its dialogue, that
            ends an answer with what is no single token (no program could stop there), or that does not give the
            answers of a short dialogue back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, cut: bool = False) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "tokenizer: it has no chat template; set tokenizer.chat_template, for instance to "
                "rlhf.conversation.LLAMA2_CHAT_TEMPLATE"
            )
        if tokenizer.pad_token_id is None:
            raise InputError(
                "tokenizer: it has no pad token; load it with rlhf.models.policy.load_tokenizer, which adds one"
            )
        if max_length is not None and max_length < 2:
            raise InputError(f"max_length: must be at least 2, got {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut = cut
        self.pad_token_id: int = tokenizer.pad_token_id
        self.writing = read_writing(tokenizer)
        self.end_token_ids = self.writing.end_token_ids
        self._pieces = Pieces(tokenizer)
        begin = tokenizer.bos_token_id
        begins = begin is not None and list(tokenizer("a")["input_ids"])[:1] == [begin]
        first = self._pieces.encode([self.writing.head])[0][:1]
        self._prefix: list[int] = [cast(int, begin)] if begins and first != [begin] else []
        self._require_round_trip()

    def _require_round_trip(self) -> None:
        """Two turns must come back as they went in, first and last; see `PROBE`."""
        for turns in (2, 4):
            prompt, whole = self._whole([PROBE[: turns - 1], PROBE[:turns]], "last")
            ids = whole.input_ids[len(prompt.input_ids) :]
            got, said = self.answer(ids).text, PROBE[turns - 1]["content"]
            said = self._pieces.decode(self._pieces.encode([said])[0]).strip()  # a small vocabulary may lack a letter
            if not said:
                raise InputError("tokenizer: its vocabulary has no token of a plain text; bring the model's own")
            if whole.input_ids[: len(prompt.input_ids)] != prompt.input_ids or got != said:
                raise InputError(
                    f"tokenizer: its chat template gives the answer {quoted(said)} back as {quoted(got)}; use another"
                )

    def limited(self, max_length: int) -> Renderer:
        """This renderer with another limit, down to which it cuts."""
        other = copy(self)
        other.max_length, other.cut = max_length, True
        return other

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Ids to sample an answer from; the last message is the user's, the ids end where the answer begins."""
        return self.prompts([conversation])[0]

    def dialogue(self, conversation: Conversation, train: Literal["all", "last"] = "all") -> Rendered:
        """Ids and loss mask of a dialogue whose last message is the assistant's; the ids end with its end token, unless
        that message is not `finished`.

        Args:
            conversation: checked here (InputError).
            train: the mask covers every answer, or only the last.
        """
        return self.dialogues([conversation], train)[0]

    def clipped(self, conversation: Conversation, tokens: int | None) -> Conversation:
        """Where a text has more letters than so many tokens hold: its end, which takes more than them too, and is
        rendered quickly. Else, and at None, the conversation itself."""
        if tokens is None or sum(len(m["content"]) for m in conversation) <= tokens:
            return conversation
        most = self._pieces.most_characters(tokens)
        if all(len(m["content"]) <= most for m in conversation):
            return conversation
        return [{**m, "content": m["content"].strip()[-most:]} for m in conversation]

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """`prompt_ids` of many conversations; several times faster than one by one."""
        return [rendered.input_ids for rendered in self._rendered(conversations, "user", "last")]

    def dialogues(self, conversations: Sequence[Conversation], train: Literal["all", "last"] = "all") -> list[Rendered]:
        """`dialogue` of many conversations; several times faster than one by one."""
        return self._rendered(conversations, "assistant", train)

    def training_rows(self, conversations: Sequence[Conversation], train: Literal["all", "last"]) -> list[Rendered]:
        """Dialogues to learn from: one row each, in their order.

        Where the template writes an earlier answer otherwise than it was sampled, as those that drop its thoughts do,
        and `train` is "all", a row for each of its answers, with what came before it: each is learnt as it is drawn.
        """
        if train == "all" and self.writing.rewrites:
            conversations = [part for c in conversations for part in _answer_by_answer(c)]
            train = "last"
        return self.dialogues(conversations, train)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that are no dialogues, without begin and end; a token that one spells out is text here too."""
        parts = [self._apart(text).split(CUT) for text in texts]
        starts = list(accumulate(map(len, parts), initial=0))
        ids = self._pieces.encode_within(list(chain.from_iterable(parts)), set(starts))
        return [list(chain.from_iterable(ids[start:end])) for start, end in pairwise(starts)]

    def answer_text(self, token_ids: Sequence[int]) -> str:
        """Text of sampled ids, without thoughts, special tokens and white space around it."""
        return self.answer(token_ids).text

    def answer(self, token_ids: Sequence[int]) -> Answer:
        """Sampled ids as text, what was thought parted from what was said; an answer that is all thoughts is empty."""
        ids = list(token_ids)
        ids = ids[:-1] if ids and ids[-1] in self.end_token_ids else ids
        text = self._pieces.decode(ids)
        opens, closes = (mark.strip() for mark in self.writing.thought)
        if not self.writing.thinks and THOUGHT_OPENS not in text:
            return Answer(text.strip(), "")
        whole = self._pieces.decode(ids, special=True)
        direct = self.writing.lead.strip()
        if closes in whole:
            first = self._first_with(ids, closes)
            thoughts = self._pieces.decode(ids[:first], special=True).strip()
            thoughts = thoughts.removesuffix(closes).strip().removeprefix(opens).strip()
            return Answer(self._pieces.decode(ids[first:]).strip(), thoughts)
        if direct and whole.strip().startswith(direct):
            return Answer(self._pieces.decode(ids[self._first_with(ids, direct) :]).strip(), "")
        if whole.strip().startswith(opens) and (opens or self.writing.thinks):
            return Answer("", whole.strip().removeprefix(opens).strip())
        return Answer(text.strip(), "")

    def _first_with(self, ids: list[int], mark: str) -> int:
        """How many of the ids it takes until their text holds the mark."""
        return bisect_left(range(len(ids)), True, key=lambda n: mark in self._pieces.decode(ids[:n], special=True))

    def _rendered(
        self, conversations: Sequence[Conversation], last: Literal["user", "assistant"], train: Literal["all", "last"]
    ) -> list[Rendered]:
        checked = [check_conversation(conversation, last, empty_answers=True) for conversation in conversations]
        if self.writing.system_refusal and any(c[0]["role"] == "system" for c in checked):
            raise InputError(
                f"messages: this tokenizer's chat template takes no system message ({self.writing.system_refusal}); "
                "set chat_template_kwargs {merge_system: true}, which lets the user's begin with it, or remove it"
            )
        whole = checked
        shortener = None
        if self.max_length is not None:
            shortener = Shortener(self.max_length, self.cut, self._pieces, lambda given: self._whole(given, train))
            checked = [shortener.without_hopeless_turns(conversation) for conversation in checked]
        results = self._whole(checked, train)
        cut = [shorter is not given for shorter, given in zip(checked, whole, strict=True)]
        if shortener is not None:
            for i, rendered in enumerate(results):
                if len(rendered.input_ids) > shortener.max_length:
                    results[i], cut[i] = shortener.shortened(checked[i], rendered), True
        return [Rendered(r.input_ids, r.loss_mask, was_cut) for r, was_cut in zip(results, cut, strict=True)]

    def _whole(self, checked: Sequence[Conversation], train: Literal["all", "last"]) -> list[Measured]:
        """Each conversation as it is, however long."""
        pieces: list[str] = []
        trained: list[bool] = []
        ends: list[int] = []
        asked = [c[:-1] if c[-1]["role"] == "assistant" else c for c in checked]
        for conversation, prompt, text in zip(checked, asked, self._render(asked), strict=True):
            if text.count(END) != sum(m["role"] != "system" for m in prompt):
                raise InputError("messages: the tokenizer's chat template leaves a message out or writes one twice")
            found = list(self._cut(text))
            if conversation is not prompt:
                found += [(piece, True) for piece in self._written(conversation[-1]).split(CUT)]
            for piece, is_answer in found:
                pieces.append(piece)
                trained.append(is_answer)
            ends.append(len(pieces))
        starts = [0, *ends][: len(ends)]
        encoded = self._pieces.encode_within(pieces, set(starts))
        results = []
        for conversation, start, end in zip(checked, starts, ends, strict=True):
            answers = [m.get("train", True) for m in conversation if m["role"] == "assistant"]
            if train == "last" or self.writing.rewrites:
                answers[:-1] = [False] * len(answers[:-1])
            if conversation[-1]["role"] == "user":
                answers = [False] * len(answers)
            ids, mask, lengths = list(self._prefix), [False] * len(self._prefix), [0]
            wanted = iter(answers)
            learn = False
            for p in range(start, end):
                if p > start and trained[p] != trained[p - 1]:
                    lengths.append(0)
                    learn = trained[p] and next(wanted)
                ids += encoded[p]
                mask += [learn] * len(encoded[p])
                lengths[-1] += len(encoded[p])
            results.append(Measured(ids, mask, lengths=lengths))
        return results

    def _written(self, answer: Message) -> str:
        """A last answer as it stands behind its prompt, with its end token where it is finished."""
        writing, finished = self.writing, answer.get("finished", True)
        thoughts, text = split_thoughts(answer["content"])
        text = self._plain(text)
        end = writing.end + writing.added_end if finished else ""
        if thoughts:
            opens, closes = writing.thought
            return opens + self._plain(thoughts) + (closes + text + end if text or finished else "")
        lead = writing.lead if text or writing.lead.strip() else ""  # an empty answer is sampled as its end token alone
        return lead + text + end

    def _render(self, conversations: Sequence[Conversation]) -> list[str]:
        """The prompts' text, with `END` behind the user's and assistant's messages, `CUT` in special tokens."""
        marked = [
            [
                {"role": m["role"], "content": self._plain(m["content"]) + (END if m["role"] != "system" else "")}
                for m in without_thoughts(conversation)
            ]
            for conversation in conversations
        ]
        return render(self.tokenizer, marked, self.writing.template, prompt=True, parts=self.writing.parts)

    def _plain(self, content: str) -> str:
        return self._apart(content.strip())

    def _apart(self, content: str) -> str:
        """The text with `CUT` in each token that it spells out."""
        if END in content or CUT in content:
            content = content.replace(END, "").replace(CUT, "")
        return self.writing.special.sub(lambda found: found.group()[0] + CUT + found.group()[1:], content)

    def _cut(self, text: str) -> Iterator[tuple[str, bool]]:
        """(piece, is it an answer) of a prompt, in order: the text without marks."""
        writing = self.writing
        before, *parts = text.split(END)
        if parts[-1] != writing.prompt:
            raise _unlike(parts[-1], writing.prompt)
        for number, part in enumerate(parts):
            after_user = number % 2 == 0
            last = number == len(parts) - 1
            after = writing.prompt if last else writing.prompt_of_earlier if after_user else writing.earlier_end
            if not part.startswith(after):
                raise _unlike(part, after)
            rest = part[len(after) :]
            if not after_user:
                before = before if before.strip() else ""  # an empty answer is sampled as its end token alone
                after += writing.added_end
            for piece in (before + after).split(CUT):
                yield piece, not after_user
            before = rest


def _unlike(part: str, after: str) -> InputError:
    return InputError(f"messages: the chat template writes {quoted(part)} after a message, elsewhere {quoted(after)}")


def _answer_by_answer(conversation: Conversation) -> Iterator[Conversation]:
    """Up to each answer that is to be learnt, all before it."""
    for number, message in enumerate(conversation, start=1):
        if message["role"] == "assistant" and message.get("train", True):
            yield conversation[:number]
