"""Layouts of preferences that are not one published set's alone: chosen and rejected, labels, ranks, winners."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from rlhf.data.layouts.conversations import (
    ANSWERS,
    FLAT_FIELDS,
    FLAT_NEEDS,
    SFT_FORMATS,
    TREE_FIELDS,
    alpaca_question,
    answered,
    best_path,
    flat_prompt,
    question_of,
    ranked_replies,
    root_of,
    tree_of,
    tree_prompt,
)
from rlhf.data.layouts.declaration import (
    Format,
    Kind,
    Row,
    asked_under,
    assistant,
    before_answer,
    is_empty,
    named,
    user,
)
from rlhf.data.layouts.dialogue_text import is_hh, parse_hh
from rlhf.data.layouts.pairing import flag_in, flag_of, good_and_bad_pairs, ranked_pairs
from rlhf.data.rows import Domain
from rlhf.errors import InputError, quoted

_OURS = ("strength", "chosen_safe", "rejected_safe", "domain")
_GATHERED: frozenset[Kind] = frozenset({"preferences", "prompts"})


def plain_pair(row: Row, names: Sequence[str] = ("messages", "prompt", "chosen", "rejected", *_OURS)) -> dict[str, Any]:
    """The fields of a plain preference row; not its messages, where these and both answers are whole dialogues."""
    pair = {name: row[name] for name in names if name in row}
    for name in ("chosen_safe", "rejected_safe"):
        if name in pair:
            pair[name] = flag_in(pair[name])
    messages, chosen = pair.get("messages"), pair.get("chosen")
    if (
        isinstance(messages, list)
        and isinstance(chosen, list)
        and len(chosen) > 1
        and before_answer(messages) != messages
    ):
        del pair["messages"]
    return pair


def given_dialogue(row: Row) -> list[Any]:
    """The SFT dialogue that stands beside a preference: its messages, or its prompt and response."""
    messages = row.get("messages")
    if isinstance(messages, list) and messages and messages[-1].get("role") == "assistant":
        return messages
    if "prompt" in row and "response" in row:
        return [*question_of(row["prompt"]), assistant(row["response"])]
    raise InputError(
        "row: not a conversation; it is a preference (chosen, rejected), and nothing says that the chosen answer is "
        "one to imitate; give it to a reward model, or write messages with the answer to train on"
    )


def asked_of_pair(row: Row) -> Any:
    """What the two answers of a plain preference row answer."""
    if "messages" in row:
        return before_answer(row["messages"]) if isinstance(row["messages"], list) else row["messages"]
    if "prompt" in row:
        return question_of(row["prompt"])
    chosen = row.get("chosen")
    if is_hh(chosen):
        chosen = parse_hh(str(chosen))
    if not isinstance(chosen, list) or len(chosen) < 2:
        raise InputError(
            "row: not a prompt; it has neither messages nor a prompt, and its answers are no whole dialogues"
        )
    return before_answer(chosen)


def chosen_and_rejected(needs: Sequence[str], name: str, **more: Any) -> Format:
    """The layout of rows with `chosen` and `rejected`, texts or messages, beside these fields."""
    defaults: dict[str, Any] = {
        "name": name,
        "needs": frozenset(needs),
        "reads": frozenset({"chosen", "rejected", "prompt", "messages", "response", *_OURS}),
        "dialogues": ("messages", "prompt", "chosen", "rejected"),
        "conversation": given_dialogue,
        "pairs": lambda row, domain: [plain_pair(row)],
        "prompt": asked_of_pair,
        "history": True,
    }
    return Format(**{**defaults, **more})


def _asked_in(name: str, field: str, *harmless: str) -> Format:
    """chosen and rejected beside a question in this field."""
    return chosen_and_rejected(
        (field, "chosen", "rejected"),
        name,
        harmless=frozenset(harmless),
        dialogues=(field, "chosen", "rejected"),
        conversation=None,
        pairs=lambda row, domain: [{**plain_pair(row), "prompt": row[field]}],
        prompt=lambda row: question_of(row[field]),
    )


def _orca_argilla(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    if row["status"] == "tie":
        raise InputError("status: is a tie, in which no answer is the better one; leave the row out")
    return [{**plain_pair(row), "prompt": row["input"]}]


def _alpaca_pair(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    return [{**plain_pair(row), "prompt": [user(alpaca_question(row))]}]


def _alpaca_list(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    if len(row["output"]) != 2:
        raise InputError(f"output: must be [the better answer, the worse one], got {quoted(row['output'])}")
    return [{"prompt": [user(alpaca_question(row))], "chosen": row["output"][0], "rejected": row["output"][1]}]


def _openai(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    return [{"prompt": row["input"], "chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}]


def _helpsteer3(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    answers = [(row["response1"], 0), (row["response2"], row["overall_preference"])]
    return ranked_pairs(row["context"], answers, "overall_preference", width=4)


def _nectar(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    answers = [(answer["answer"], answer["rank"]) for answer in row["answers"]]
    return ranked_pairs(question_of(row["prompt"]), answers, "rank", width=None, best="lowest")


def _winner(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    if row["winner"] not in ("model_a", "model_b"):
        raise InputError(f"winner: must be model_a or model_b, got {quoted(row['winner'])}; leave ties out")
    sides = ("a", "b") if row["winner"] == "model_a" else ("b", "a")
    return [{"chosen": row[f"conversation_{sides[0]}"], "rejected": row[f"conversation_{sides[1]}"]}]


def _json_texts(row: Row, field: str) -> list[Any]:
    try:
        texts = json.loads(row[field])
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{field}: must be JSON text of a list of texts, got {quoted(row[field])}") from error
    if not isinstance(texts, list) or not texts:
        raise InputError(f"{field}: must be JSON text of a list of texts, got {quoted(row[field])}")
    return texts


def _json_dialogue(row: Row, side: str) -> list[Any]:
    questions, answers = _json_texts(row, "prompt"), _json_texts(row, f"response_{side}")
    return list(chain.from_iterable((user(q), assistant(a)) for q, a in zip(questions, answers, strict=False)))


def _winner_columns(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
    won = [side for side in ("a", "b") if flag_of(row.get(f"winner_model_{side}"))]
    if len(won) != 1:
        raise InputError("winner_model_a, winner_model_b: one of them must be 1; leave ties out")
    lost = "b" if won[0] == "a" else "a"
    return [{"chosen": _json_dialogue(row, won[0]), "rejected": _json_dialogue(row, lost)}]


def _safe_and_unsafe(rows: Sequence[Row], domain: Domain | None) -> list[dict[str, Any]]:
    if domain == "helpfulness":
        raise InputError("is_safe: says nothing of helpfulness; use these rows for safety")
    judged = [(row["response"], row["is_safe"]) for row in rows]
    pairs = good_and_bad_pairs(question_of(rows[0]["prompt"]), judged, "is_safe")
    return [{**pair, "chosen_safe": True, "rejected_safe": False, "domain": "safety"} for pair in pairs]


def _safe_dialogue(row: Row) -> list[Any]:
    if not flag_of(row["is_safe"]):
        raise InputError(f"is_safe: an answer that is not safe is not trained on, got {quoted(row['is_safe'])}")
    return [*question_of(row["prompt"]), assistant(row["response"])]


def labelled(base: Format, label: str) -> Format:
    """KTO's layout over that of an answered question: a label says whether the answer is good.

    As SFT rows good answers are taken and bad ones refused; as preferences every good answer of a prompt is compared
    with every bad one.
    """
    conversation: Callable[[Row], list[Any]] = base.conversation  # type: ignore[assignment]

    def good(row: Row) -> list[Any]:
        if not flag_of(row[label]):
            raise InputError(f"{label}: the answer is marked as bad, so it is not trained on, got {quoted(row[label])}")
        return list(conversation(row))

    def pairs(rows: Sequence[Row], domain: Domain | None) -> list[dict[str, Any]]:
        dialogues = [conversation(row) for row in rows]
        judged = [(whole[-1].get("content"), row[label]) for whole, row in zip(dialogues, rows, strict=True)]
        return good_and_bad_pairs(list(dialogues[0][:-1]), judged, label)

    return replace(
        base,
        name=f"KTO ({base.name}, {label})",
        needs=base.needs | {label},
        when=lambda row: (base.when is None or base.when(row)) and flag_of(row[label]) is not None,
        conversation=good,
        pairs=pairs,
        prompt=None if base.prompt is None else lambda rows: base.prompt(rows[0]),  # type: ignore[misc]
        together=lambda row: json.dumps([before_answer(conversation(row)), asked_under(row)], default=str),
        joined=_GATHERED,
    )


def _beside_rejected(base: Format, rejected: str) -> Format:
    """ms-swift's preferences: a layout of dialogues whose answer is the better one, the worse one in a field beside.

    `rejected_response` is the answer, a text or messages; `rejected_messages` the whole dialogue with it.
    """
    conversation: Callable[[Row], list[Any]] = base.conversation  # type: ignore[assignment]

    def pairs(row: Row, domain: Domain | None) -> list[dict[str, Any]]:
        chosen, worse = conversation(row), row[rejected]
        if rejected == "rejected_response":
            worse = [*before_answer(chosen), *(worse if isinstance(worse, list) else [assistant(worse)])]
        return [{**plain_pair(row, _OURS), "chosen": chosen, "rejected": worse}]

    return replace(
        base,
        name=f"ms-swift ({base.name}, {rejected})",
        needs=base.needs | {rejected},
        reads=base.reads | set(_OURS),
        dialogues=(*base.dialogues, rejected),
        when=lambda row: (base.when is None or base.when(row)) and not is_empty(row[rejected]),
        pairs=pairs,
    )


def _tree_pairs(tree: Any) -> list[dict[str, Any]]:
    pairs = []
    for messages, replies in ranked_replies(tree):
        answers = [(reply.get("text"), reply["rank"]) for reply in replies]
        pairs += ranked_pairs(messages, answers, "rank", width=None, best="lowest")
    if not pairs:
        raise InputError("rank: no two answers of the tree have a rank")
    return pairs


def labelled_formats(bases: Sequence[Format]) -> list[Format]:
    """KTO's layouts over these, with either name of the label."""
    return [labelled(base, label) for base in bases for label in ("label", "kto_tag")]


_SWIFT = ({"messages"}, {"conversations"}, {"conversation"}, {"query", "response"}, {"instruction", "output"})
PREFERENCE_FORMATS = (
    *(
        _beside_rejected(base, rejected)
        for base in SFT_FORMATS
        for rejected in ("rejected_messages", "rejected_response")
        if base.needs in _SWIFT
    ),
    chosen_and_rejected(
        ("conversations", "chosen", "rejected"),
        "LLaMA-Factory's ShareGPT preferences",
        dialogues=("conversations", "chosen", "rejected"),
        conversation=None,
        pairs=lambda row, domain: [{**plain_pair(row), "messages": row["conversations"]}],
        prompt=lambda row: row["conversations"],
    ),
    chosen_and_rejected(
        ("instruction", "chosen", "rejected"),
        "LLaMA-Factory's Alpaca preferences",
        reads=frozenset({"input", *_OURS}),
        dialogues=("chosen", "rejected"),
        conversation=None,
        pairs=_alpaca_pair,
        prompt=lambda row: [user(alpaca_question(row))],
    ),
    Format(
        name="Alpaca preferences",
        needs=frozenset({"instruction", "output"}),
        reads=frozenset({"input"}),
        when=lambda row: isinstance(row["output"], list),
        pairs=_alpaca_list,
        prompt=lambda row: [user(alpaca_question(row))],
        history=True,
    ),
    replace(
        _asked_in("Orca pairs (Argilla)", "input"),
        needs=frozenset({"input", "chosen", "rejected", "status"}),
        harmless=frozenset({"generations", "order", "labelling_model", "original_chosen", "original_rejected"}),
        pairs=_orca_argilla,
    ),
    *(_asked_in("Orca pairs", field) for field in ("question", "query", "input", "context_messages")),
    Format(
        name="OpenAI preferences",
        needs=frozenset({"input", "preferred_output", "non_preferred_output"}),
        dialogues=("input", "preferred_output", "non_preferred_output"),
        pairs=_openai,
        prompt=lambda row: row["input"],
    ),
    Format(
        name="StackExchange, paired",
        needs=frozenset({"question", "response_j", "response_k"}),
        harmless=frozenset({"qid", "date", "metadata"}),
        pairs=lambda row, domain: [
            {"prompt": row["question"], "chosen": row["response_j"], "rejected": row["response_k"]}
        ],
        prompt=lambda row: [user(row["question"])],
    ),
    Format(
        name="HelpSteer3 preferences",
        needs=frozenset({"context", "response1", "response2", "overall_preference"}),
        harmless=frozenset({"domain", "individual_preference"}),
        dialogues=("context",),
        pairs=_helpsteer3,
        prompt=lambda row: row["context"],
    ),
    Format(
        name="Nectar",
        needs=frozenset({"prompt", "answers"}),
        harmless=frozenset({"num_responses", "good_natured"}),
        when=lambda row: isinstance(row["prompt"], str),
        pairs=_nectar,
        prompt=lambda row: question_of(row["prompt"]),
    ),
    Format(
        name="Chatbot Arena",
        needs=frozenset({"conversation_a", "conversation_b", "winner"}),
        harmless=named(
            "question_id model_a model_b judge anony openai_moderation toxic_chat_tag conv_metadata "
            "dedup_tag is_code is_refusal category_tag evaluation_session_id evaluation_order"
        ),
        dialogues=("conversation_a", "conversation_b"),
        pairs=_winner,
        prompt=lambda row: before_answer(row["conversation_a"]),
    ),
    Format(
        name="Chatbot Arena, columns of JSON",
        needs=frozenset({"prompt", "response_a", "response_b"}),
        reads=frozenset({"winner_model_a", "winner_model_b", "winner_tie"}),
        harmless=frozenset({"model_a", "model_b"}),
        pairs=_winner_columns,
        prompt=lambda row: before_answer(_json_dialogue(row, "a")),
    ),
    Format(
        name="BeaverTails",
        needs=frozenset({"prompt", "response", "is_safe"}),
        conversation=_safe_dialogue,
        pairs=_safe_and_unsafe,
        prompt=lambda rows: question_of(rows[0]["prompt"]),
        together=lambda row: str([row["prompt"], *asked_under(row)]),
        joined=_GATHERED,
    ),
    Format(
        name="Open Assistant trees",
        needs=frozenset({"message_tree_id", "prompt"}),
        harmless=frozenset(TREE_FIELDS),
        conversation=lambda row: best_path(root_of(row)),
        pairs=lambda row, domain: _tree_pairs(root_of(row)),
        prompt=tree_prompt,
    ),
    Format(
        name="Open Assistant messages",
        needs=FLAT_NEEDS,
        harmless=FLAT_FIELDS,
        conversation=lambda rows: best_path(tree_of(rows)),
        pairs=lambda rows, domain: _tree_pairs(tree_of(rows)),
        prompt=flat_prompt,
        together=lambda row: str(row.get("message_tree_id")),
        joined=frozenset({"sft", "preferences", "prompts"}),
    ),
    *labelled_formats(
        [
            *(answered("prompt", answer) for answer in ANSWERS),
            *(one for one in SFT_FORMATS if one.name in ("Alpaca", "ShareGPT", "messages")),
        ]
    ),
    Format(
        name="stepwise rewards",
        needs=frozenset({"prompt", "completions", "labels"}),
        prompt=lambda row: question_of(row["prompt"]),
    ),
)
GENERAL_PREFERENCE = (
    chosen_and_rejected(("chosen",), "preferences (chosen, rejected)"),
    chosen_and_rejected(("rejected",), "preferences (chosen, rejected)"),
)
