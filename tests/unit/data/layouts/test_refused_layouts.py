"""What a layout says that would change the meaning is refused by name."""

from __future__ import annotations

import json

import pytest
from layout_rows import (
    ASK,
    BEFORE,
    CALL,
    GPT,
    HUMAN,
    NO,
    SYSTEM,
    TREE,
    YES,
    A,
    B,
    Q,
)

from rlhf.data.formats import conversation_of, pairs_of, preference_from, prompt_of
from rlhf.errors import InputError

REFUSED = {
    "tools": ({"messages": [ASK, YES], "tools": CALL}, "tools: tool calls are not supported"),
    "LLaMA-Factory's tools": ({"conversations": [HUMAN, GPT], "tools": "[{}]"}, "tools: tool calls are not supported"),
    "a call": ({"messages": [ASK, {**YES, "tool_calls": CALL}]}, "message 2 has tool_calls: tool calls are not"),
    "a tool": ({"messages": [ASK, {"role": "tool", "content": "x"}, YES]}, "message 2 is a tool's, got 'tool'"),
    "reasoning": ({"messages": [ASK, {**YES, "reasoning_content": "hm"}]}, "message 2 has reasoning_content"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, YES]},
        "message 1 has a part that is no text, got 'image_url'",
    ),
    "half a weight": ({"messages": [ASK, {**YES, "weight": 0.5}]}, "message 2 has weight: must be 0"),
    "a row's weight": ({"messages": [ASK, YES], "weight": 0.5}, "weight: rows have no weight"),
    "a bad answer": ({"prompt": Q, "completion": A, "label": False}, "label: the answer is marked as bad"),
    "an unknown label": ({"question": Q, "answer": A, "label": 3}, "label: nothing says what the label"),
    "an unsafe answer": ({"prompt": Q, "response": A, "is_safe": False}, "is_safe: an answer that is not safe"),
    "two systems": ({"system": "x", "messages": [SYSTEM, ASK, YES]}, "system: the messages have a system message of"),
    "a rendered text": ({"text": f"<|im_start|>user\n{Q}"}, "text: is a dialogue rendered in a chat format already"),
    "a preference": ({"prompt": Q, "chosen": A, "rejected": B}, "it is a preference (chosen, rejected)"),
    "another kind": ({"question": Q, "chosen": A, "rejected": B}, "layout 'Orca pairs', which holds preferences or"),
    "calls by another name": ({"messages": [ASK, {**YES, "function_calls": "f()"}]}, "message 2 has function_calls"),
    "an environment": ({"messages": [ASK, YES, {"role": "environment", "content": "x"}]}, "message 3 is a tool's"),
    "a mask": ({"messages": [{**ASK, "masked": True}, {**YES, "masked": True}]}, "message 2 has masked: whether an"),
    "training, of a row": ({"messages": [ASK, YES], "training": False}, "training: whether an answer is trained on"),
    "half an answer": ({"messages": [ASK, {**YES, "train_detail": [{"train": False}]}]}, "message 2 has train_detail"),
    "a thought as a part": (
        {"contents": [ASK, {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": A}]}]},
        "message 2 has a part that has thought: only content is rendered",
    ),
    "reasoning as a part": (
        {"messages": [ASK, {"role": "assistant", "content": [{"type": "reasoning", "text": "hm"}]}]},
        "message 2 has a part that is no text, got 'reasoning'",
    ),
    "two contents": ({"conversations": [{**HUMAN, "content": "x"}, GPT]}, "message 1 has content and value, which"),
    "messages that Python printed": ({"prompt": Q, "completion": repr([YES])}, "holds messages as Python prints them"),
    "no input": ({"instruction": Q, "input": float("nan"), "output": A}, "input: must be a text, got nan"),
    "two inputs": ({"instruction": Q, "input": "x", "context": "y", "output": A}, "input, context: both say what"),
    "a rendered prompt": ({"prompt": f"<s>[INST] {Q} [/INST]", "completion": A}, "prompt: is rendered in a chat"),
    "Alpaca, rendered": ({"prompt": f"### Instruction:\n{Q}\n\n### Response:", "response": A}, "got '### Response:'"),
    "a deleted tree": (
        {"message_tree_id": "m", "prompt": {**TREE["prompt"], "deleted": True}},
        "deleted: the first message of the tree is",
    ),
    "a tree that reviewers rejected": (
        {"message_tree_id": "m", "prompt": {**TREE["prompt"], "review_result": False}},
        "review_result: the first message of the tree is withdrawn",
    ),
    "a slip": ({"mesages": [ASK, YES]}, "did you mean messages by mesages?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_meaning_is_refused_by_name(case):
    row, sentence = REFUSED[case]
    with pytest.raises(InputError) as caught:
        conversation_of(row)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": Q, "chosen": A, "rejected": B, "margin": 2.0}, "margin: the loss takes its margin from strength"),
        ({"conversation_a": [ASK, YES], "conversation_b": [ASK, NO], "winner": "tie"}, "winner: must be model_a or"),
        ({"input": Q, "chosen": A, "rejected": B, "status": "tie"}, "status: is a tie"),
        ({"context": [ASK], "response1": A, "response2": B, "overall_preference": 0}, "no two answers differ in score"),
        ({"prompt": [SYSTEM, ASK], "chosen": [*BEFORE, YES], "rejected": [*BEFORE, NO]}, "the prompt does not stand"),
        ({"prompt": Q, "completion": A, "label": True}, "label: no good and bad answer to one prompt"),
        ({"prompt": Q, "chosen": repr([YES]), "rejected": B}, "chosen: holds messages as Python prints them"),
        ({"prompt": Q, "chosen": [["user", Q], YES], "rejected": [NO]}, "chosen: message 1 must be {role, content}"),
        ({"prompt": [ASK], "chosen": [YES], "rejected": [None, NO]}, "rejected: message 1 must be {role, content}"),
        ({"prompt": Q, "chosen": [{**YES, "weight": 0}], "rejected": [NO]}, "chosen: its answer is not to be trained"),
        (
            {"input": {"messages": [ASK], "tools": CALL}, "preferred_output": [YES], "non_preferred_output": [NO]},
            "input has tools: tool calls are not supported",
        ),
        ({"prompt": Q, "chosen": A, "rejected": B, "chosen_safe": "maybe"}, "chosen_safe: must be true, false or null"),
        ({"prompt": Q, "chosen": A, "rejected": B, "domain": "math"}, "#helpfulness or #safety behind the file's name"),
        ({"chosen": A, "rejected": B}, "nothing says what its chosen and rejected answer"),
    ],
)
def test_preferences_that_are_refused(row, sentence):
    with pytest.raises(InputError) as caught:
        preference_from(pairs_of({"id": "p", **row})[0])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": Q, "url": "x"}, "nothing says that its text is what a user asks, beside url"),
        ({"prompt": json.dumps([Q])}, "prompt: is JSON text of a list"),
        ({"text": f"[INST] {Q} [/INST]"}, "rendered in a chat format already"),
    ],
)
def test_prompts_that_are_refused(row, sentence):
    with pytest.raises(InputError, match=sentence):
        prompt_of({"id": "p", **row})
