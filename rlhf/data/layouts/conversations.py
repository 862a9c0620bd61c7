"""Layouts of dialogues and of questions with one answer: what SFT trains on, and what prompts are taken from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from rlhf.data.layouts.declaration import Format, Row, assistant, before_answer, named, user
from rlhf.data.layouts.dialogue_text import turns_of_prompt, turns_of_text
from rlhf.data.layouts.pairing import flag_of
from rlhf.errors import InputError, quoted

ANSWERS = ("completion", "response", "output", "answer")
_QUESTIONS = (
    *(("prompt", answer) for answer in ANSWERS),
    *(("question", answer) for answer in ("answer", "response", "output", "completion")),
    *(("query", answer) for answer in ("response", "answer", "output")),
    ("problem", "solution"),
    ("inputs", "targets"),
    ("input", "output"),
)


def question_of(value: Any) -> Any:
    """Messages of a prompt: they stand there, or a text: a dialogue in HH's format, or one message of the user."""
    if not isinstance(value, str):
        return value if isinstance(value, list) else [user(value)]
    if value.lstrip().startswith('["') and value.rstrip().endswith('"]'):
        raise InputError(f"prompt: is JSON text of a list, got {quoted(value)}; give messages, or the text itself")
    turns = turns_of_prompt(value)
    return [user(value)] if turns is None else turns


def answered(question: str, answer: str) -> Format:
    """The layout of rows with a question (a text or messages) and its answer in these two fields."""

    def conversation(row: Row) -> list[Any]:
        said = row[answer]
        return [*question_of(row[question]), *(said if isinstance(said, list) else [assistant(said)])]

    return Format(
        name=f"{question} and {answer}",
        needs=frozenset({question, answer}),
        dialogues=(question, answer),
        conversation=conversation,
        prompt=lambda row: question_of(row[question]),
        history=True,
    )


def alpaca_question(row: Row) -> str:
    """What Alpaca's and Dolly's rows ask: the text that the instruction is about, an empty line, the instruction."""
    parts = {name: row[name] for name in ("input", "context", "instruction") if row.get(name) not in (None, "")}
    for name, part in parts.items():
        if not isinstance(part, str):
            raise InputError(f"{name}: must be a text, got {quoted(part)}")
    if "input" in parts and "context" in parts:
        raise InputError("input, context: both say what the instruction is about; keep one")
    return "\n\n".join(parts.values())


def _alpaca(answer: str) -> Format:
    return Format(
        name="Alpaca",
        needs=frozenset({"instruction", answer}),
        reads=frozenset({"input", "context"}),
        harmless=frozenset({"text", "reference"}),
        when=lambda row: not isinstance(row[answer], list),
        conversation=lambda row: [user(alpaca_question(row)), assistant(row[answer])],
        prompt=lambda row: [user(alpaca_question(row))],
        history=True,
    )


def _dialogue(name: str, field: str, *harmless: str, also: Iterable[str] = ()) -> Format:
    """The layout of rows that hold their messages in one field."""
    return Format(
        name=name,
        needs=frozenset({field, *also}),
        harmless=frozenset(harmless),
        dialogues=(field,),
        conversation=lambda row: row[field],
        prompt=lambda row: before_answer(row[field]) if isinstance(row[field], list) else row[field],
    )


def _question_alone(field: str, *harmless: str) -> Format:
    return Format(
        name=field,
        needs=frozenset({field}),
        harmless=frozenset(harmless),
        dialogues=(field,),
        prompt=lambda row: question_of(row[field]),
        history=True,
    )


def _text_dialogue(row: Row) -> list[Any]:
    turns = turns_of_text(row["text"])
    if turns is None:
        raise InputError(
            "row: not a conversation; needs messages, or prompt and completion; its text is no dialogue that can be "
            f"told apart into turns, got {quoted(row['text'])}"
        )
    return turns


def _text_prompt(row: Row) -> list[Any]:
    others = [name for name in row if name not in ("text", "id", "source", "domain")]
    text = row["text"]
    turns = turns_of_text(text) if isinstance(text, str) else None
    if turns is not None:
        return before_answer(turns)
    if others:
        raise InputError(
            f"row: not a prompt; nothing says that its text is what a user asks, beside {', '.join(map(str, others))}; "
            "name the field prompt, or leave text alone"
        )
    return [user(text)]


def best_path(node: Any) -> list[Any]:
    """Messages of an Open Assistant tree from its root along the best-ranked replies, up to the last answer."""
    messages: list[Any] = []
    while isinstance(node, dict):
        messages.append(_said(node))
        node = min(_replies(node), key=rank_of, default=None)
    return messages[:-1] if messages and messages[-1]["role"] == "user" else messages


def rank_of(node: Any) -> float:
    """An Open Assistant message's rank among its siblings, 0 the best; infinite where it has none."""
    rank = node.get("rank") if isinstance(node, dict) else None
    return math.inf if rank is None else float(rank)


def _withdrawn(node: Row) -> str | None:
    """The field by which a message of an Open Assistant tree is deleted or reviewers rejected it; None: neither."""
    if flag_of(node.get("deleted")):
        return "deleted"
    return "review_result" if flag_of(node.get("review_result")) is False else None


def _replies(node: Row) -> list[Row]:
    """Of a message of an Open Assistant tree, those that stand."""
    return [reply for reply in node.get("replies") or [] if isinstance(reply, dict) and not _withdrawn(reply)]


def _said(node: Row) -> dict[str, Any]:
    return assistant(node.get("text")) if node.get("role") == "assistant" else user(node.get("text"))


def ranked_replies(node: Any, before: Sequence[Any] = ()) -> list[tuple[list[Any], list[Any]]]:
    """(messages before, ranked answers to them) of each place of a tree where several answers have a rank.

    Below the answers it goes on along the best one.
    """
    found: list[tuple[list[Any], list[Any]]] = []
    messages = list(before)
    while isinstance(node, dict):
        messages = [*messages, _said(node)]
        replies = _replies(node)
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if node.get("role") != "assistant" and len(ranked) > 1:
            found.append((messages, ranked))
        node = min(replies, key=rank_of, default=None)
    return found


def tree_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Open Assistant's flat messages of one tree as the tree; withdrawn ones and what hangs on them are left out."""
    nodes: dict[Any, dict[str, Any]] = {
        row["message_id"]: {**row, "replies": []} for row in rows if not _withdrawn(row)
    }
    root: dict[str, Any] | None = None
    for node in nodes.values():
        parent = nodes.get(node.get("parent_id"))
        if node.get("parent_id") is None:
            root = node
        elif parent is not None:
            parent["replies"].append(node)
    if root is None:
        raise InputError(
            f"parent_id: no message of the tree {quoted(rows[0].get('message_tree_id'))} that is neither deleted nor "
            "rejected by reviewers is its root"
        )
    return root


def _root(node: Row) -> list[Any]:
    return [user(node.get("text"))]


def root_of(row: Row) -> Any:
    """The first message of an Open Assistant tree, with its replies."""
    root = row["prompt"]
    if isinstance(root, dict) and (field := _withdrawn(root)):
        raise InputError(f"{field}: the first message of the tree is withdrawn; leave the row out")
    return root


TREE_FIELDS = ("tree_state", "message_tree_id")
FLAT_NEEDS = frozenset({"message_id", "text", "role"})
FLAT_FIELDS = named(
    "parent_id message_tree_id rank deleted user_id created_date review_count review_result synthetic "
    "model_name detoxify tree_state emojis labels"
)


def tree_prompt(row: Row) -> list[Any]:
    """An Open Assistant tree's first message."""
    return _root(root_of(row))


def flat_prompt(rows: Sequence[Row]) -> list[Any]:
    """The first message of flat Open Assistant rows of one tree."""
    return _root(tree_of(rows))


def _vertex(row: Row) -> list[Any]:
    system = row.get("systemInstruction")
    return [*({**message, "role": "system"} for message in system or []), *row["contents"]]


SFT_FORMATS = (
    Format(
        name="log of the red team",  # its answers are what a model should not say: prompts alone
        needs=frozenset({"round", "person", "messages", "answer", "violation"}),
        harmless=frozenset({"judge", "seconds", "style"}),
        dialogues=("messages",),
        prompt=lambda row: row["messages"],
    ),
    Format(
        name="UltraChat's texts in turn",
        needs=frozenset({"data"}),
        dialogues=("data",),
        when=lambda row: isinstance(row["data"], list) and all(isinstance(text, str) for text in row["data"]),
        conversation=lambda row: row["data"],
        prompt=lambda row: before_answer(row["data"]),
    ),
    Format(
        name="Vertex AI",
        needs=frozenset({"contents"}),
        reads=frozenset({"systemInstruction"}),
        dialogues=("contents", "systemInstruction"),
        conversation=_vertex,
        prompt=lambda row: before_answer(_vertex(row)),
    ),
    _dialogue("Magpie", "conversations", "gen_input_configs", also=("instruction", "response")),
    _dialogue("messages", "messages", "prompt", "parallel_tool_calls"),
    _dialogue("ShareGPT", "conversations", "skip_prompt_formatting", "custom_instruction"),
    _dialogue("WildChat, LMSYS or Capybara", "conversation", "openai_moderation", "detoxify_moderation"),
    *(_alpaca(answer) for answer in ("output", "response", "completion", "answer")),
    *(answered(question, answer) for question, answer in _QUESTIONS),
)
PROMPT_FORMATS = (
    _question_alone("context_messages"),
    *(_question_alone(field) for field in ("prompt", "question", "query", "problem", "instruction", "inputs")),
    Format("text", frozenset({"text"}), conversation=_text_dialogue, prompt=_text_prompt),
)


def field_names(formats: Iterable[Format]) -> list[str]:
    """All fields that these layouts know, sorted: for a guess at what was meant."""
    return sorted(set(chain.from_iterable((*one.needs, *one.reads) for one in formats)))
