"""One row of each layout as the hub has it: what is asked is Q, the good answer A, the bad one B."""

from __future__ import annotations

import json

Q, A, B = "Which colour is the sky?", "Blue.", "Green."
ASK, YES, NO = ({"role": r, "content": c} for r, c in (("user", Q), ("assistant", A), ("assistant", B)))
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT, GPT_BAD = {"from": "human", "value": Q}, {"from": "gpt", "value": A}, {"from": "gpt", "value": B}
BEFORE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
HISTORY = {"system": "Be brief.", "history": [["Hello", "Hi."]]}
NODE_A = {"message_id": "a", "role": "assistant", "text": A, "rank": 0, "replies": []}
NODE_B = {"message_id": "b", "role": "assistant", "text": B, "rank": 1, "replies": []}
TREE = {
    "message_tree_id": "m",
    "prompt": {"message_id": "m", "role": "prompter", "text": Q, "replies": [NODE_B, NODE_A]},
}
FLAT = [
    {"message_id": "m", "parent_id": None, "role": "prompter", "text": Q, "message_tree_id": "m", "rank": None},
    {"message_id": "b", "parent_id": "m", "role": "assistant", "text": B, "message_tree_id": "m", "rank": 1},
    {"message_id": "a", "parent_id": "m", "role": "assistant", "text": A, "message_tree_id": "m", "rank": 0},
]

ANSWERED = {"chosen": A, "rejected": B}

DIALOGUES = {
    "ShareGPT": {"conversations": [HUMAN, GPT]},
    "OpenHermes": {"conversations": [HUMAN, GPT], "system_prompt": None, "custom_instruction": None, "source": "orca"},
    "LIMA": {"conversations": [Q, A]},
    "UltraChat": {"id": "0", "data": [Q, A]},
    "WildChat": {"conversation_hash": "h", "conversation": [{**ASK, "country": "France"}, YES], "turn": 1},
    "Capybara": {"conversation": [{"input": Q, "output": A}]},
    "JSON text in a table": {"messages": json.dumps([ASK, YES])},
    "Vertex AI": {"contents": [{"role": "user", "parts": [{"text": Q}]}, {"role": "model", "parts": [{"text": A}]}]},
    "OpenAI parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, YES]},
    "an empty system message": {"messages": [{"role": "system", "content": ""}, ASK, YES]},
    "OpenAI nulls": {"messages": [{**ASK, "name": None}, {**YES, "tool_calls": None, "refusal": None}], "tools": []},
    "a refusal": {"messages": [ASK, {"role": "assistant", "content": None, "refusal": A}]},
    "no_robots": {"prompt": Q, "prompt_id": "1", "messages": [ASK, YES], "category": "Open QA"},
    "Alpaca": {"instruction": Q, "input": "", "output": A, "text": f"### Instruction:\n{Q}\n\n### Response:\n{A}"},
    "Magpie": {"uuid": "u", "instruction": Q, "response": A, "conversations": [HUMAN, GPT]},
    "MetaMath": {"query": Q, "response": A, "type": None},
    "a problem": {"problem": Q, "solution": A},
    "BeaverTails": {"prompt": Q, "response": A, "category": {"violence": False}, "is_safe": True},
    "KTO": {"prompt": Q, "completion": A, "label": True},
    "KTO of LLaMA-Factory": {"instruction": Q, "output": A, "kto_tag": True},
    "Guanaco": {"text": f"### Human: {Q}### Assistant: {A}"},
    "OASST tree": TREE,
    "DeepSpeed-Chat": {"prompt": f"Human: {Q} Assistant:", "response": A, "chosen": A, "rejected": B},
    "a pandas index": {"": "0", "Unnamed: 0": "0", "prompt": Q, "completion": A},
    "a deleted answer": {
        "message_tree_id": "m",
        "prompt": {**TREE["prompt"], "replies": [{**NODE_B, "rank": -1, "deleted": True}, NODE_A]},
    },
    "an answer that reviewers rejected": {
        "message_tree_id": "m",
        "prompt": {**TREE["prompt"], "replies": [{**NODE_B, "rank": -1, "review_result": False}, NODE_A]},
    },
    "turns of ms-swift": {"conversation": [{"human": Q, "assistant": A}]},
}
PAIRS = {
    "LLaMA-Factory's Alpaca": {"instruction": Q, "input": "", "chosen": A, "rejected": B},
    "Alpaca with two outputs": {"instruction": Q, "output": [A, B]},
    "LLaMA-Factory's ShareGPT": {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT_BAD},
    "Orca": {"question": Q, "chosen": A, "rejected": B},
    "Orca of Argilla": {"input": Q, "chosen": A, "rejected": B, "status": "swapped", "order": ["B", "A"]},
    "OpenAI": {"input": {"messages": [ASK]}, "preferred_output": [YES], "non_preferred_output": [NO]},
    "StackExchange, paired": {"qid": 1, "question": Q, "response_j": A, "response_k": B},
    "HelpSteer3": {"domain": "code", "context": [ASK], "response1": A, "response2": B, "overall_preference": -1},
    "Nectar": {
        "prompt": f"\n\nHuman: {Q}\n\nAssistant: ",
        "answers": [{"answer": B, "rank": 2.0, "model": "x"}, {"answer": A, "rank": 1.0, "model": "y"}],
        "source": ["x"],
    },
    "Arena": {"conversation_a": [ASK, NO], "conversation_b": [ASK, YES], "winner": "model_b", "turn": 1},
    "Arena, columns of JSON": {
        "prompt": json.dumps([Q]),
        "response_a": json.dumps([A]),
        "response_b": json.dumps([B]),
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    "OASST tree": TREE,
    "DeepSpeed-Chat": {"prompt": f"Human: {Q} Assistant:", "chosen": A, "rejected": B},
    "UltraFeedback": {"prompt": Q, "chosen": [ASK, YES], "rejected": [ASK, NO], "messages": [ASK, YES]},
    "HH with its prompt": {"prompt": Q, **{n: f"\n\nHuman: {Q}\n\nAssistant: {t}" for n, t in ANSWERED.items()}},
    "OpenRLHF": {"context_messages": [ASK], "chosen": A, "rejected": B},
    "JSON text of a message": {"prompt": Q, "chosen": json.dumps(YES), "rejected": json.dumps(NO)},
    "scores of a csv file": {"prompt": Q, "chosen": A, "rejected": B, "score_chosen": "8.5", "score_rejected": "4"},
    "a winner of a csv file": {
        "prompt": json.dumps([Q]),
        "response_a": json.dumps([A]),
        "response_b": json.dumps([B]),
        "winner_model_a": "1",
        "winner_model_b": "0",
    },
    "labels of a csv file": {
        "prompt": Q,
        "response_0": B,
        "response_1": A,
        "better_response_id": "1",
        "is_response_0_safe": "False",
        "is_response_1_safe": "True",
    },
    "several turns as the answer": {"prompt": [ASK], "chosen": [YES], "rejected": [NO]},
    "ms-swift": {"messages": [ASK, YES], "rejected_response": B},
    "ms-swift, whole dialogues": {"messages": [ASK, YES], "rejected_messages": [ASK, NO]},
    "ms-swift, messages as the answer": {"conversations": [HUMAN, GPT], "rejected_response": [GPT_BAD]},
    "ms-swift, a question": {"query": Q, "response": A, "rejected_response": B},
    "ms-swift's Alpaca": {"instruction": Q, "input": "", "output": A, "rejected_response": B},
}


CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
