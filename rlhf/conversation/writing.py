"""What a chat template writes around messages, learnt by rendering probes of it.

A template is a program: the only way to know it is to run it. Four short dialogues tell what stands before an answer
when it is sampled and when it is history, what ends it, and how thoughts are written; one round trip checks the rest.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rlhf.conversation.messages import THOUGHT_CLOSES, THOUGHT_OPENS
from rlhf.conversation.template import (
    ENABLE_THINKING,
    MERGE_SYSTEM,
    with_generation_prompt,
    with_kwargs,
    with_merged_system,
)
from rlhf.errors import InputError, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "\ufdd0"  # end of a user's or assistant's message; both are Unicode noncharacters, which no real text holds
CUT = "\ufdd1"  # inside a special token that a message spells out: the pieces left and right are tokenized apart
SYSTEM, USER, ANSWER, THOUGHT = "Ksystem", "Kuser", "Kanswer", "Kthought"
PROBE_SECONDS = 5.0
"""Of the processor, in which a template must have written a short dialogue; it takes some thousandths."""
NOT_ITS_PROMPT = (
    "tokenizer: its chat template does not begin a dialogue with the text of its prompt; set chat_template_kwargs "
    "{enable_thinking: false}, which ends the prompt where its dialogues begin the answer, or use another template"
)


@dataclass(frozen=True)
class Writing:
    """What a chat template writes around messages; all of it text.

    Args:
        template: the template itself, with a generation prompt at whose end an answer begins.
        parts: it takes a message's content as a list of parts, as templates of models that see do.
        special: matches what is a token and no text: the special tokens, and those that were added to the vocabulary
            and the template writes.
        head: the prompt of a dialogue of one message.
        prompt: what follows a user's message, last of a prompt.
        lead: what the answer begins with, behind the prompt: mostly nothing or a space; where a model is asked to
            think, the place of its thoughts.
        thought: what opens and closes thoughts, behind the prompt; the opening is empty where the prompt does it.
        thinks: the template leaves room for thoughts, or asks for them.
        end: what ends a last answer, its end token with it.
        earlier: what follows an earlier user's message, up to the answer.
        earlier_end: what ends an earlier answer.
        added_end: the tokenizer's end token, where the template writes nothing behind an answer.
        end_token_ids: ids that end an answer.
        system_refusal: why it takes no system message; empty: it takes them.
    """

    template: str
    parts: bool
    special: re.Pattern[str]
    head: str
    prompt: str
    lead: str
    thought: tuple[str, str]
    thinks: bool
    end: str
    earlier: str
    earlier_end: str
    added_end: str
    end_token_ids: frozenset[int]
    system_refusal: str

    @property
    def prompt_of_earlier(self) -> str:
        """What follows an earlier user's message and belongs to no answer."""
        return self.prompt if self.earlier.startswith(self.prompt) else self.earlier.rstrip(" ")

    @property
    def rewrites(self) -> bool:
        """Whether an earlier answer is written otherwise than it was as the last one: it is context, and no target."""
        return (self.earlier, self.earlier_end) != (self.prompt + self.lead, self.end)


def read_writing(tokenizer: PreTrainedTokenizerBase) -> Writing:
    """Learn what a tokenizer's chat template writes.

    A prompt ends where the template's dialogue begins the answer: a template without generation prompt, or with half a
    one, gets it from there. The exception is one that leaves room for thoughts there, or has the prompt open them.

    Raises:
        InputError: the prompt is not the beginning of the dialogue, or an answer ends with what is no single token.
    """
    return _read(tokenizer, _template_of(tokenizer), at_once=False)


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Its chat template; of several, the one called default."""
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        names = ", ".join(map(str, tokenizer.chat_template or {}))
        raise InputError(
            f"tokenizer: of its chat templates ({names}) none is called default; give its tokenizer_config.json or "
            "its chat_template.jinja the one that is meant"
        ) from error


def apply_kwargs(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Write `chat_template_kwargs` into a tokenizer's chat template, where every stage saves them with it.

    Raises:
        InputError: see `check_kwargs` and `read_writing`.
    """
    template = with_kwargs(_template_of(tokenizer), kwargs)
    if kwargs.get(ENABLE_THINKING) is False:
        template = _read(tokenizer, template, at_once=True).template
    if kwargs.get(MERGE_SYSTEM) and _read(tokenizer, template, at_once=False).system_refusal:
        template = with_merged_system(template)
    tokenizer.chat_template = template


def render(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    template: str,
    *,
    prompt: bool,
    parts: bool = False,
) -> list[str]:
    """The template's text of each conversation; InputError with what a template says that refuses one."""
    if not conversations:
        return []
    asked = [[_parted(message) for message in c] for c in conversations] if parts else conversations
    try:
        texts = tokenizer.apply_chat_template(
            cast("list[list[dict[str, str]]]", asked),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    except _Endless:
        raise
    except Exception as error:  # a template is a program
        raise InputError(
            f"messages: the tokenizer's chat template refuses the conversation ({' '.join(str(error).split())})"
        ) from error
    return cast("list[str]", texts)


def _parted(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _said(role: str, content: str, **more: str) -> dict[str, str]:
    return {"role": role, "content": content if role == "system" else content + END, **more}


class _Probe:
    """One template, rendered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, parts: bool) -> None:
        self.tokenizer, self.template, self.parts = tokenizer, template, parts

    def text(self, *messages: dict[str, str], prompt: bool) -> str:
        with _stopped_after(PROBE_SECONDS):
            return render(self.tokenizer, [messages], self.template, prompt=prompt, parts=self.parts)[0]

    def holds_text(self) -> bool:
        try:
            return USER + END in self.text(_said("user", USER), prompt=True)
        except _Endless:
            raise
        except InputError:
            return False


class _Endless(InputError):
    """A template that does not come to its end."""


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Around the rendering of a short dialogue: `_Endless` where it takes so much of the processor.

    Only the main thread can be told so; another one runs on.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGVTALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise _Endless(
            f"tokenizer: its chat template has not written a short dialogue after {seconds:g} seconds; use another one"
        )

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _read(tokenizer: PreTrainedTokenizerBase, template: str, *, at_once: bool) -> Writing:
    probe = _Probe(tokenizer, template, parts=False)
    if not probe.holds_text() and (in_parts := _Probe(tokenizer, template, parts=True)).holds_text():
        probe = in_parts
    user, answer = _said("user", USER), _said("assistant", ANSWER)
    prompt, dialogue = probe.text(user, prompt=True), probe.text(user, answer, prompt=False)
    head, mark, before = prompt.rpartition(END)
    start, answered, tail = dialogue.rpartition(ANSWER + END)
    if not (mark and answered and start.startswith(head + END)):
        raise InputError(NOT_ITS_PROMPT)
    direct = start[len(head + END) :]  # what follows the user's message where the answer has no thoughts
    thought = None if at_once else _thought(probe, prompt, dialogue, before)
    if thought is None and (not direct.startswith(before) or direct[len(before) :].strip()):
        if before.strip() and not direct.startswith(before) and not at_once:
            raise InputError(NOT_ITS_PROMPT)
        before = direct.rstrip(" ")
        behind = probe.text(user, prompt=False).rpartition(END)[2]
        mended = _Probe(tokenizer, with_generation_prompt(template, before.removeprefix(behind)), probe.parts)
        if mended.text(user, prompt=True) != head + END + before or mended.text(user, answer, prompt=False) != dialogue:
            raise InputError(NOT_ITS_PROMPT)
        probe, prompt = mended, head + END + before
    opens, closes = thought or (f"{THOUGHT_OPENS}\n", f"\n{THOUGHT_CLOSES}\n\n")
    lead = direct[len(before) :] if direct.startswith(before) else opens + closes
    special, end, added_end = _end(tokenizer, tail)
    earlier, earlier_end = _history(probe, special, end)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids((special.findall(end) or [added_end])[-1])}
    with_system, system_refusal = _with_system(probe)
    written = "\n".join((prompt, dialogue, opens, closes, earlier, earlier_end, with_system))
    return Writing(
        template=probe.template,
        parts=probe.parts,
        special=_marks(tokenizer, special, written),
        head=prompt,
        prompt=before,
        lead=lead,
        thought=(opens, closes),
        thinks=thought is not None,
        end=end,
        earlier=earlier,
        earlier_end=earlier_end,
        added_end=added_end,
        end_token_ids=frozenset(cast(int, token) for token in ends if token is not None),
        system_refusal=system_refusal,
    )


def _thought(probe: _Probe, prompt: str, dialogue: str, before: str) -> tuple[str, str] | None:
    """What opens and closes thoughts behind the prompt; None: the template knows none there.

    A message has three names for them in the field, and some templates read them from its content; to let them through
    as any other text is not to know them.
    """
    user, spelt = _said("user", USER), f"{THOUGHT_OPENS}\n{THOUGHT}\n{THOUGHT_CLOSES}\n\n{ANSWER}"
    named = _said("assistant", ANSWER, reasoning_content=THOUGHT, reasoning=THOUGHT, thinking=THOUGHT)
    for answer in (named, _said("assistant", spelt)):
        try:
            text = probe.text(user, answer, prompt=False)
        except InputError:
            continue
        opens, thought, rest = text.removeprefix(prompt).partition(THOUGHT)
        closes, answered, _ = rest.partition(ANSWER + END)
        found = text.startswith(prompt) and thought and answered and THOUGHT_CLOSES not in opens
        if found and text != dialogue.replace(ANSWER, spelt):
            return opens, closes
    return ("", f"\n{THOUGHT_CLOSES}\n\n") if before.rstrip().endswith(THOUGHT_OPENS) else None


def _end(tokenizer: PreTrainedTokenizerBase, tail: str) -> tuple[re.Pattern[str], str, str]:
    """What is a token and no text; what ends an answer, of the text behind it; the end token that is added there."""
    names = set(tokenizer.all_special_tokens)
    names |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    letter = next((name for name in sorted(names) if len(name) == 1 and (name.isascii() or name.isspace())), None)
    if letter is not None:  # it cannot be told from a text that holds it
        raise InputError(
            f"tokenizer: it calls {letter!r} a special token, which any text may hold; mend the eos_token, or what "
            "else names it in its tokenizer_config.json or tokenizer.json"
        )
    special = _any_of(name for name in names if len(name) > 1)
    found = special.search(tail)
    if found is None:  # a token that was added to the vocabulary and is not called special, but is no white space
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()]
        found = _any_of(added).search(tail)
        if found is not None:  # from now on a message that spells it out is text, as with special ones
            special = re.compile(f"{special.pattern}|{re.escape(found.group())}")
    if found is not None:
        return special, tail[: found.end()], ""
    if text := tail.strip():
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
        raise InputError(
            f"tokenizer: its chat template ends an answer with {quoted(text)}, which is no token of it but "
            f"{len(cast('list[int]', pieces))}, so that nothing could stop there; let the template write "
            "{{ eos_token }} in its place, or add the token by training with recipes/sft.py --new_tokens"
        )
    if not tokenizer.eos_token:
        raise InputError(
            "tokenizer: neither its chat template nor its eos token ends an answer; set tokenizer.eos_token"
        )
    return special, "", cast(str, tokenizer.eos_token)


def _any_of(names: Any) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _history(probe: _Probe, special: re.Pattern[str], end: str) -> tuple[str, str]:
    """What follows an earlier user's message up to the answer, and what ends that answer."""
    asked = [_said("user", USER), _said("assistant", ANSWER), _said("user", USER)]
    parts = probe.text(*asked, prompt=True).split(END)
    if len(parts) != 4 or not parts[1].endswith(ANSWER):
        raise InputError("tokenizer: its chat template rewrites an earlier answer; use another")
    if not end or parts[2].startswith(end):
        return parts[1].removesuffix(ANSWER), end
    found = special.search(parts[2])
    return parts[1].removesuffix(ANSWER), parts[2][: found.end()] if found else ""


def _with_system(probe: _Probe) -> tuple[str, str]:
    """(the text of a dialogue with a system message, why the template takes none)."""
    system, user = _said("system", SYSTEM), _said("user", USER)
    try:
        text = probe.text(system, user, prompt=True)
    except InputError as error:
        return "", str(error)
    return text, "" if SYSTEM in text else "it leaves the system message out"


def _marks(tokenizer: PreTrainedTokenizerBase, special: re.Pattern[str], written: str) -> re.Pattern[str]:
    """`special`, and the tokens of signs that the template itself writes: a message that spells one out is text."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    marks = [name for name in added if len(name) > 1 and re.search(r"[^\w\s]", name) and name in written]
    return re.compile("|".join([special.pattern, _any_of(marks).pattern]))
