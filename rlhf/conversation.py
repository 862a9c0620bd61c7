"""Message, Conversation, and the ONE renderer: chat template -> ids, loss mask. Nobody else turns text into ids.

A conversation is rendered once, with an invisible mark at the end of every user and assistant message; the marks say
where each answer begins and ends. The text is cut there and every piece is tokenized by itself. So what is trained
starts with exactly the ids that sampling starts from, whatever the tokenizer would have merged across the seam, and a
message that spells out a special token is text, never that token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from rlhf.errors import InputError, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Marks(TypedDict, total=False):
    train: bool
    finished: bool


class Message(_Marks):
    """One turn. `train` stands only at answers that are context and never trained on, and is False there.

    `finished` stands only at answers that were cut off before their end token, and is False there: as a dialogue's last
    message such an answer has no end, and nobody learns to end there.
    """

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = list[Message]

# Llama 2's chat format (decision 6), with the marks that trl's `assistant_only_loss` needs. The space before the
# answer belongs to the answer (byte-level BPE carries it in the first token), and the end token follows it at once.
LLAMA2_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] == 'system' -%}
{{- raise_exception('user and assistant must take turns, the user first') -}}
{%- elif message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' -}}
{%- else -%}
{%- generation -%}{{- ' ' + message['content'] | trim + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}"""


def read_chat_template(name: str | None) -> str | None:
    """The chat template called `llama2`, or the content of a file; None for None. InputError for neither."""
    if name is None or name == "llama2":
        return LLAMA2_CHAT_TEMPLATE if name else None
    if not Path(name).is_file():
        raise InputError(f"chat_template: {name} is no file; give llama2, or a file with a Jinja template")
    return Path(name).read_text(encoding="utf-8")


_END = "\ufdd0"  # end of a user's or assistant's message; both are Unicode noncharacters, which no real text holds
_CUT = "\ufdd1"  # inside a special token that a message spells out: the pieces left and right are tokenized apart
_PROBE_SYSTEM, _PROBE_USER, _PROBE_ANSWER = "Ksystem", "Kuser", "Kanswer"


def check_conversation(
    messages: Any, last: Literal["user", "assistant"] | None = None, *, empty_answers: bool = False
) -> Conversation:
    """Return `messages` as a new list of {role, content}: an optional system message, then user and assistant in turn.

    An answer keeps its `train` and its `finished` where they are False.

    Raises InputError naming the message (1-based) and the value: not a list of objects, an unknown role, an empty
    content, half a character (a lone surrogate), a system message that is not first, roles that do not alternate from
    the user on, another last role.
    `empty_answers` allows an assistant's content to be blank: data must not have that, but a model may say it.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(f"messages: must be a non-empty list of {{role, content}}, got {quoted(messages)}")
    checked: Conversation = []
    expected = "user"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise InputError(f"messages: message {number} must be {{role, content}}, got {quoted(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise InputError(
                f"messages: message {number} has the role {quoted(role)}, must be system, user or assistant"
            )
        blank_allowed = empty_answers and role == "assistant"
        if not isinstance(content, str) or not (content.strip() or blank_allowed):
            raise InputError(
                f"messages: message {number} ({role}) must have a non-empty text as content, got {quoted(content)}"
            )
        check_characters(f"messages: message {number} ({role})", content)
        if role == "system":
            if number != 1:
                raise InputError(f"messages: message {number} is a system message, which may only come first")
        elif role != expected:
            raise InputError(
                f"messages: message {number} is the {role}'s, but it is the {expected}'s turn "
                "(user and assistant take turns)"
            )
        else:
            expected = "assistant" if role == "user" else "user"
        checked.append({"role": role, "content": content})
        if role == "assistant":
            for mark in ("train", "finished"):
                if message.get(mark) is False:
                    checked[-1][mark] = False
    if last is not None and checked[-1]["role"] != last:
        raise InputError(f"messages: the last message must be the {last}'s, got the {checked[-1]['role']}'s")
    if checked[-1]["role"] == "system":
        raise InputError("messages: there is only a system message; add the user's")
    return checked


def check_characters(field: str, text: str) -> None:
    """InputError where a text holds half a character: a surrogate that is no part of a pair, which UTF-8 cannot say."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{field}: holds half a character (a lone surrogate, got {text[error.start]!r} at {error.start + 1}); "
                "it was cut in the middle of an emoji: mend the text or leave the row out"
            ) from error


@dataclass(frozen=True)
class Rendered:
    """A dialogue as token ids; `loss_mask[i]`: token i belongs to a trained answer or is its end token.

    `cut`: it was too long, and has lost its oldest turns, or more.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    cut: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class _Measured(Rendered):
    """`lengths`: tokens of each user's and assistant's message with what the template writes around it."""

    lengths: list[int] = field(default_factory=list)


def _parts(conversation: Conversation) -> tuple[Conversation, Conversation]:
    """(system message or nothing, user's and assistant's messages)."""
    cut = 1 if conversation[0]["role"] == "system" else 0
    return conversation[:cut], conversation[cut:]


class Renderer:
    """Turns conversations into ids with the tokenizer's own chat template, and answers' ids back into text.

    White space around a message is dropped; an answer may be empty, as a model may end at once. A template that writes
    nothing behind an answer gets the tokenizer's end token there; one that writes a text which is no token is refused.
    Where the tokenizer puts a begin token before any text and the template writes none, one is put first.

    Args:
        tokenizer: with a chat template and a pad token.
        max_length: most ids of a prompt or a dialogue; whole oldest turns are dropped to get there, the system
            message, the last user's message and the answer stay, and what is still too long is an InputError.
            None: no limit.
        cut: what is still too long loses text instead: the longer of the system message and the last user's message
            its beginning, and when nothing is left there, the answer its own. The template stays whole.

    Raises:
        InputError: no chat template or no pad token; a template whose prompt is not the beginning of its dialogue, or
            that ends an answer with what is no single token: no program could stop there.
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
        special = set(tokenizer.all_special_tokens)
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        alternatives = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True) if len(token) > 1)
        self._special = re.compile(alternatives or "(?!)")
        self._read_template()
        probe = ["Hello", " Hello", "[INST] Hello"]
        self._anchor = self._encode(["\n"])[0]
        self._anchored = self._encode(probe) != [
            ids[len(self._anchor) :] for ids in self._encode(["\n" + p for p in probe])
        ]
        begin = tokenizer.bos_token_id
        begins = begin is not None and list(tokenizer("a")["input_ids"])[:1] == [begin]
        first = self._encode([self._prompt_head])[0][:1]
        self._prefix: list[int] = [cast(int, begin)] if begins and first != [begin] else []

    def _read_template(self) -> None:
        """Learn what the template writes after a user's and an assistant's message; whether it takes a system's."""
        user: Message = {"role": "user", "content": _PROBE_USER}
        answer: Message = {"role": "assistant", "content": _PROBE_ANSWER}
        system: Message = {"role": "system", "content": _PROBE_SYSTEM}
        prompt, dialogue = self._render([[user]], prompt=True)[0], self._render([[user, answer]], prompt=False)[0]
        _, mark, self._after_user = prompt.rpartition(_END)
        head, end_mark, after_answer = dialogue.rpartition(_END)
        if not (mark and end_mark and head.startswith(prompt)):
            raise InputError(
                "tokenizer: its chat template does not begin a dialogue with the text of its prompt; use another"
            )
        found = self._special.search(after_answer) or self._added_token(after_answer)
        eos = self.tokenizer.eos_token
        if found is None and after_answer.strip():
            end = after_answer.strip()
            raise InputError(
                f"tokenizer: its chat template ends an answer with {quoted(end)}, which is no token of it but "
                f"{len(self._encode([end])[0])}, so that nothing could stop there; let the template write "
                "{{ eos_token }} in its place, or add the token by training with recipes/sft.py --new_tokens"
            )
        if found is None and not eos:
            raise InputError(
                "tokenizer: neither its chat template nor its eos token ends an answer; set tokenizer.eos_token"
            )
        self._after_answer = after_answer[: found.end()] if found else ""
        self._added_end = "" if found else cast(str, eos)
        self._prompt_head = prompt
        end_text = found.group() if found else cast(str, eos)
        ends = {self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(end_text)}
        self.end_token_ids: frozenset[int] = frozenset(cast(int, end) for end in ends if end is not None)
        self._system_refusal = ""
        try:
            with_system = self._render([[system, user]], prompt=True)[0]
            whole = self._render([[system, user, answer]], prompt=False)[0]
            if _PROBE_SYSTEM not in with_system or not whole.startswith(with_system):
                self._system_refusal = "it leaves the system message out"
        except InputError as error:
            self._system_refusal = str(error)

    def _added_token(self, text: str) -> re.Match[str] | None:
        """The first token in a text that was added to the vocabulary and is not called special (but is no white space);
        from now on a message that spells it out is text, as with special ones."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if str(token).strip()]
        found = re.search("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)", text)
        if found is not None:
            self._special = re.compile(f"{self._special.pattern}|{re.escape(found.group())}")
        return found

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

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """`prompt_ids` of many conversations; several times faster than one by one."""
        return [rendered.input_ids for rendered in self._rendered(conversations, "user", "last")]

    def dialogues(self, conversations: Sequence[Conversation], train: Literal["all", "last"] = "all") -> list[Rendered]:
        """`dialogue` of many conversations; several times faster than one by one."""
        return self._rendered(conversations, "assistant", train)

    def answer_text(self, token_ids: Sequence[int]) -> str:
        """Text of sampled ids, without special tokens and without white space around it."""
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text).strip()

    def _rendered(
        self, conversations: Sequence[Conversation], last: Literal["user", "assistant"], train: Literal["all", "last"]
    ) -> list[Rendered]:
        checked = [check_conversation(conversation, last, empty_answers=True) for conversation in conversations]
        if self._system_refusal and any(c[0]["role"] == "system" for c in checked):
            raise InputError(
                f"messages: this tokenizer's chat template takes no system message ({self._system_refusal}); remove it"
            )
        whole = checked
        if self.max_length is not None:
            checked = [self._without_hopeless_turns(conversation, self.max_length) for conversation in checked]
        results = self._whole(checked, last, train)
        cut = [shorter is not given for shorter, given in zip(checked, whole, strict=True)]
        if self.max_length is not None:
            for i, rendered in enumerate(results):
                if len(rendered.input_ids) > self.max_length:
                    results[i], cut[i] = self._shortened(checked[i], rendered, last, train, self.max_length), True
        return [Rendered(r.input_ids, r.loss_mask, was_cut) for r, was_cut in zip(results, cut, strict=True)]

    def _whole(
        self, checked: Sequence[Conversation], last: Literal["user", "assistant"], train: Literal["all", "last"]
    ) -> list[_Measured]:
        """Each conversation as it is, however long."""
        pieces: list[str] = []
        trained: list[bool] = []
        ends: list[int] = []
        for conversation, text in zip(checked, self._render(checked, prompt=last == "user"), strict=True):
            if text.count(_END) != sum(m["role"] != "system" for m in conversation):
                raise InputError("messages: the tokenizer's chat template leaves a message out or writes one twice")
            for piece, is_answer in self._cut(text, conversation[-1].get("finished", True)):
                pieces.append(piece)
                trained.append(is_answer)
            ends.append(len(pieces))
        starts = [0, *ends][: len(ends)]
        encoded = self._encode_pieces(pieces, set(starts))
        results = []
        for conversation, start, end in zip(checked, starts, ends, strict=True):
            answers = [train == "all" and m.get("train", True) for m in conversation if m["role"] == "assistant"]
            if answers and train == "last":
                answers[-1] = conversation[-1].get("train", True)
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
            results.append(_Measured(ids, mask, lengths=lengths))
        return results

    def _without_hopeless_turns(self, conversation: Conversation, max_length: int) -> Conversation:
        """Without the oldest turns that even the vocabulary's longest tokens could not hold: they are never encoded."""
        sizes = [len(message["content"]) for message in conversation]
        if sum(sizes) <= max_length:
            return conversation
        most = 4 * max_length * self._longest_token  # a normalizer may join characters, at most a few into one
        system, _ = _parts(conversation)
        kept = sum(sizes)
        first = len(system)
        while kept > most and len(conversation) - first > 2:
            kept -= sizes[first] + sizes[first + 1]
            first += 2
        turn = conversation[first:]
        if kept > most:
            if not self.cut:
                raise self._too_long(turn, f"more than {max_length}", max_length)
            system, turn = (
                [Message(role=m["role"], content=m["content"].strip()[-most:]) for m in part] for part in (system, turn)
            )
        return [*system, *turn]

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest entry of the vocabulary."""
        return max(map(len, self.tokenizer.get_vocab()))

    def _shortened(
        self,
        conversation: Conversation,
        whole: _Measured,
        last: Literal["user", "assistant"],
        train: Literal["all", "last"],
        max_length: int,
    ) -> _Measured:
        """Without as few of its oldest pairs of messages as will do; InputError where the last turn alone is too long.

        The lengths in the whole dialogue say how many to drop; rendering what is left corrects it.
        """
        system, turns = _parts(conversation)
        most = (len(turns) - 1) // 2
        excess, dropped = len(whole.input_ids) - max_length, 0
        while excess > 0 and dropped < most:
            excess -= sum(whole.lengths[2 * dropped : 2 * dropped + 2])
            dropped += 1
        rendered = self._whole([[*system, *turns[2 * dropped :]]], last, train)[0]
        while len(rendered.input_ids) > max_length:
            if dropped == most:
                return self._cut_turn([*system, *turns[2 * most :]], rendered, last, train, max_length)
            dropped += 1
            rendered = self._whole([[*system, *turns[2 * dropped :]]], last, train)[0]
        while dropped > 1:
            longer = self._whole([[*system, *turns[2 * dropped - 2 :]]], last, train)[0]
            if len(longer.input_ids) > max_length:
                break
            rendered, dropped = longer, dropped - 1
        return rendered

    def _cut_turn(
        self,
        turn: Conversation,
        rendered: _Measured,
        last: Literal["user", "assistant"],
        train: Literal["all", "last"],
        max_length: int,
    ) -> _Measured:
        """A last turn with less text; InputError where nothing is to be cut, or nothing is left to."""
        while (excess := len(rendered.input_ids) - max_length) > 0:
            shorter = self._without_beginning(turn, excess) if self.cut else None
            if shorter is None:
                raise self._too_long(turn, str(len(rendered.input_ids)), max_length)
            turn = shorter
            rendered = self._whole([turn], last, train)[0]
        return rendered

    def _without_beginning(self, turn: Conversation, excess: int) -> Conversation | None:
        """With about `excess` tokens less, at least one character; None: there is no text left to cut."""
        texts = [m["content"].strip() for m in turn]
        ids = self._encode(texts)
        asked = [i for i, m in enumerate(turn) if m["role"] != "assistant" and len(texts[i]) > 1]
        said = [i for i, m in enumerate(turn) if m["role"] == "assistant" and len(texts[i]) > 1]
        if not (asked or said):
            return None
        place = max(asked or said, key=lambda i: len(ids[i]))
        keep = len(ids[place]) - excess
        end = str(self.tokenizer.decode(ids[place][-keep:], clean_up_tokenization_spaces=False)) if keep > 0 else ""
        end = end.lstrip("\ufffd").strip()  # a character may have been parted
        if not 0 < len(end) < len(texts[place]):
            end = texts[place][-1:] if keep <= 0 else texts[place][1:].strip()
        return [{**m, "content": end} if i == place else m for i, m in enumerate(turn)]

    def _too_long(self, turn: Conversation, length: str, max_length: int) -> InputError:
        return InputError(
            f"messages: the last turn takes {length} tokens, above max_length={max_length}; "
            f"raise it or leave the row out (it begins {quoted(turn[0]['content'])})"
        )

    def _render(self, conversations: Sequence[Conversation], *, prompt: bool) -> list[str]:
        """The template's text, with `_END` behind the user's and assistant's messages, `_CUT` in special tokens."""
        marked = [
            [
                {"role": m["role"], "content": self._plain(m["content"]) + (_END if m["role"] != "system" else "")}
                for m in conversation
            ]
            for conversation in conversations
        ]
        if not marked:
            return []
        try:
            texts = self.tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template is a program
            raise InputError(
                f"messages: the tokenizer's chat template refuses the conversation ({' '.join(str(error).split())})"
            ) from error
        return cast("list[str]", texts)

    def _plain(self, content: str) -> str:
        content = content.strip()
        if _END in content or _CUT in content:
            content = content.replace(_END, "").replace(_CUT, "")
        return self._special.sub(lambda found: found.group()[0] + _CUT + found.group()[1:], content)

    def _cut(self, text: str, finished: bool) -> Iterator[tuple[str, bool]]:
        """(piece, is it an answer) in order: the text without marks, up to the last answer's end token.

        Not `finished`: up to the end of its text.
        """
        after_user, parts = True, text.split(_END)
        before = parts[0]
        for number, part in enumerate(parts[1:], start=2):
            after = self._after_user if after_user else self._after_answer
            if not part.startswith(after):
                raise InputError(
                    f"messages: the chat template writes {quoted(part)} after a message, elsewhere {quoted(after)}"
                )
            rest = part[len(after) :]
            if not after_user:
                before = before if before.strip() else ""  # an empty answer is sampled as its end token alone
                after = after + self._added_end if finished or number < len(parts) else ""
            for piece in (before + after).split(_CUT):
                yield piece, not after_user
            before, after_user = rest, not after_user

    def _encode_pieces(self, pieces: list[str], starts: set[int]) -> list[list[int]]:
        """Ids of each piece as they are inside a text; `starts` are the pieces that begin one.

        SentencePiece-like tokenizers put a space before any text: their later pieces are tokenized behind a line break.
        """
        if not self._anchored:
            return self._encode(pieces)
        ids = self._encode([piece if p in starts else "\n" + piece for p, piece in enumerate(pieces)])
        size = len(self._anchor)
        return [
            row if p in starts else row[size:] if row[:size] == self._anchor else self._encode([pieces[p]])[0]
            for p, row in enumerate(ids)
        ]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        return cast("list[list[int]]", encoded["input_ids"])
