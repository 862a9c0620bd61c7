"""Each layout as the hub has it, read as each kind it can be, with every field that changes the meaning honoured."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from rlhf.data.formats import FORMATS, conversation_of, format_of, gathered, pairs_of, preference_from, prompt_of
from rlhf.data.loading import load_conversations, load_preferences, load_prompts, untagged
from rlhf.errors import InputError
from rlhf.jsonl import write_rows

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


def turns(messages):
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize("row", DIALOGUES.values(), ids=DIALOGUES)
def test_a_dialogue_as_sft_row_and_as_prompt(row):
    unused = Counter()
    assert conversation_of(row, unused) == [ASK, YES] and not unused
    assert prompt_of({"id": "p", **row}).messages == [ASK]


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_a_pair_as_preference_and_as_prompt(row):
    unused = Counter()
    (pair,) = pairs_of({"id": "p", **row}, None, unused)
    read = preference_from(pair)
    assert (read.messages, read.chosen, read.rejected, dict(unused)) == ([ASK], A, B, {})
    assert prompt_of({"id": "p", **row}).messages == [ASK]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": Q, "input": "", "output": A, **HISTORY},
        {"prompt": Q, "completion": A, **HISTORY},
        {"prompt": [SYSTEM, *BEFORE, ASK], "completion": [YES]},
        {"messages": [{"role": "developer", "content": "Be brief."}, *BEFORE, ASK, YES]},
        {"system_prompt": "Be brief.", "conversations": [*BEFORE, HUMAN, GPT]},
        {"system": "Be brief.", "messages": [SYSTEM, *BEFORE, ASK, YES]},
    ],
)
def test_system_and_history_are_never_dropped(row):
    assert conversation_of(row) == [SYSTEM, *BEFORE, ASK, YES]
    assert prompt_of({"id": "p", **row}).messages == [SYSTEM, *BEFORE, ASK]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": A, "rejected": B, **HISTORY},
        {"instruction": Q, "chosen": A, "rejected": B, **HISTORY},
        {"prompt": [SYSTEM, *BEFORE, ASK], "chosen": [YES], "rejected": [NO]},
        {"prompt": [SYSTEM, *BEFORE, ASK], "chosen": [*BEFORE, ASK, YES], "rejected": [*BEFORE, ASK, NO]},
        {"prompt": [SYSTEM, BEFORE[0]], "chosen": [BEFORE[1], ASK, YES], "rejected": [BEFORE[1], ASK, NO]},
        {"system": "Be brief.", "prompt": Q, "chosen": [*BEFORE, ASK, YES], "rejected": [*BEFORE, ASK, NO]},
        {"query": Q, "response": A, "rejected_response": B, **HISTORY},
        {"messages": [SYSTEM, *BEFORE, ASK, YES], "rejected_response": B},
    ],
)
def test_system_and_history_of_preferences(row):
    (pair,) = pairs_of({"id": "p", **row})
    read = preference_from(pair)
    assert (read.messages, read.chosen, read.rejected) == ([SYSTEM, *BEFORE, ASK], A, B)


@pytest.mark.parametrize(
    "flag",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"training": False}, {"loss_scale": 0.0}],
)
def test_an_answer_that_is_not_to_be_trained_on_is_marked(flag):
    read = conversation_of({"messages": [BEFORE[0], {**BEFORE[1], **flag}, ASK, {**YES, "weight": 1}]})
    assert read == [BEFORE[0], {**BEFORE[1], "train": False}, ASK, YES]
    assert "train" not in prompt_of({"id": "p", "messages": read}).messages[1]
    (pair,) = pairs_of({"id": "p", "messages": read[:3], "chosen": A, "rejected": B})
    assert preference_from(pair).messages == [*BEFORE, ASK]
    with pytest.raises(InputError, match="no answer is to be trained on"):
        conversation_of({"messages": [ASK, {**YES, **flag}]})


def test_an_answer_without_an_end_stays_one():
    cut = {**YES, "finished": False}
    assert conversation_of({"messages": [ASK, cut]}) == [ASK, cut]
    assert conversation_of({"messages": [ASK, {**YES, "finished": True}]}) == [ASK, YES]
    assert (
        prompt_of({"id": "p", "messages": [*BEFORE[:1], {**BEFORE[1], "finished": False}, ASK]}).messages[1]
        == BEFORE[1]
    )


CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
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
    "row",
    [
        {"messages": [ASK, {**YES, "reasoning_content": "hm"}]},
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": CALL}]},
        {"prompt": Q, "completion": A, "reasoning": "hm"},
        {
            "prompt": [ASK],
            **{name: [{**answer, "thinking": "hm"}] for name, answer in (("chosen", YES), ("rejected", NO))},
        },
        {"chosen": [ASK, {**YES, "reasoning_content": "hm"}], "rejected": [ASK, {**NO, "reasoning_content": "hm"}]},
    ],
)
def test_what_a_prompt_s_answer_has_beside_it_is_left_off_with_it(row):
    assert prompt_of({"id": "p", **row}).messages == [ASK]


def test_a_dialogue_beside_two_whole_ones_may_end_with_thoughts():
    row = {"messages": [ASK, {**YES, "reasoning_content": "hm"}], "chosen": [ASK, YES], "rejected": [ASK, NO]}
    (pair,) = pairs_of({"id": "p", **row})
    assert preference_from(pair).messages == [ASK]
    with pytest.raises(InputError, match="message 2 has reasoning_content"):
        conversation_of(row)


def test_thoughts_of_an_answer_before_the_prompt_are_refused():
    with pytest.raises(InputError, match="message 2 has reasoning_content"):
        prompt_of({"id": "p", "messages": [BEFORE[0], {**BEFORE[1], "reasoning_content": "hm"}, ASK, YES]})


@pytest.mark.parametrize("field", [{"deleted": True}, {"review_result": False}, {"review_result": "False"}])
def test_a_flat_message_that_was_withdrawn_is_left_out(field):
    read = [FLAT[0], {**FLAT[1], "rank": -1, **field}, FLAT[2], {**FLAT[1], "message_id": "c", "parent_id": "b"}]
    assert conversation_of(read) == [ASK, YES]
    with pytest.raises(InputError, match="no message of the tree 'm' that is neither deleted nor"):
        conversation_of([{**FLAT[0], **field}, *FLAT[1:]])


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


def test_rows_that_belong_together_make_pairs(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    other = {"prompt": "Why?", "completion": "So.", "label": True}
    kto = [{"prompt": Q, "completion": text, "label": good} for text, good in ((A, True), (B, False))]
    write_rows(path, [kto[0], other, kto[1]])
    (read,) = load_preferences(path, on_bad_row="skip")
    assert (read.messages, read.chosen, read.rejected) == ([ASK], A, B)
    assert "skipped 1 of 2 rows: 1 x label: no good and bad answer to one prompt" in capsys.readouterr().err
    assert [prompt.messages[0]["content"] for prompt in load_prompts(path)] == [Q, "Why?"]
    assert load_conversations(path, on_bad_row="skip")[0] == [ASK, YES]

    write_rows(path, [{"prompt": Q, "response": text, "is_safe": safe} for text, safe in ((B, False), (A, True))])
    (read,) = load_preferences(path)
    assert (read.chosen, read.chosen_safe, read.rejected, read.rejected_safe) == (A, True, B, False)
    assert read.domain == "safety"

    write_rows(path, FLAT)
    assert load_conversations(path) == [[ASK, YES]]
    assert [prompt.messages for prompt in load_prompts(path)] == [[ASK]]
    (read,) = load_preferences(path)
    assert (read.messages, read.chosen, read.rejected) == ([ASK], A, B)


def test_answers_given_under_different_instructions_make_no_pair(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = [{"prompt": Q, "completion": text, "label": good} for text, good in ((A, "True"), (B, "False"))]
    write_rows(path, rows)
    assert len(load_preferences(path)) == 1
    for differs in ({"system": "Be long."}, {"domain": "safety"}, {"history": [["Hello", "Hi."]]}):
        write_rows(path, [rows[0], {**rows[1], **differs}])
        with pytest.raises(InputError, match="label: no good and bad answer to one prompt"):
            load_preferences(path)
        assert len(load_prompts(path)) == 2


def test_an_answer_may_be_json_and_reasoning_may_be_a_switch():
    made = json.dumps([{"fruit": "banana"}])
    assert conversation_of({"prompt": Q, "completion": made, "reasoning": "off"})[-1]["content"] == made
    (pair,) = pairs_of({"id": "p", "prompt": Q, "chosen": made, "rejected": json.dumps({"fruit": "lime"})})
    assert preference_from(pair).chosen == made


def test_nectar_s_ranks_make_all_pairs():
    answers = [{"answer": text, "rank": rank} for text, rank in (("c", 3.0), ("a", 1.0), ("b", 2.0))]
    pairs = pairs_of({"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "answers": answers})
    assert [(pair["chosen"], pair["rejected"], pair["strength"]) for pair in pairs] == [
        ("a", "b", None),
        ("a", "c", None),
        ("b", "c", None),
    ]


def test_fields_that_are_not_read_are_said_once_a_file(tmp_path, capsys):
    write_rows(tmp_path / "r.jsonl", [{"messages": [ASK, {**YES, "mood": "good"}], "grade": 3, "empty": None}] * 2)
    load_conversations(tmp_path / "r.jsonl")
    assert capsys.readouterr().err == f"{tmp_path / 'r.jsonl'}: fields not used: grade, mood of messages\n"


def test_several_sft_files_and_a_saved_data_set(tmp_path):
    import datasets

    write_rows(tmp_path / "a.jsonl", [{"messages": [ASK, YES]}])
    (tmp_path / "lines.json").write_text(f"{json.dumps({'conversations': [HUMAN, GPT]})}\n" * 2, encoding="utf-8")
    datasets.Dataset.from_list([{"question": Q, "answer": A}]).save_to_disk(tmp_path / "saved")
    parts = datasets.DatasetDict(train=datasets.Dataset.from_list([{"question": Q, "answer": A}]))
    parts.save_to_disk(tmp_path / "parts")
    names = [tmp_path / name for name in ("a.jsonl", "lines.json", "saved", "parts")]
    assert load_conversations(names) == [[ASK, YES]] * 5
    datasets.DatasetDict(test=parts["train"]).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match="has no split train; name the folder of one of its splits: test"):
        load_conversations(tmp_path / "other")


def test_a_source_s_name_tags_its_rows(tmp_path):
    path = tmp_path / "r.jsonl"
    write_rows(path, [{"prompt": Q, "chosen": A, "rejected": B}])
    assert load_preferences(f"{path}#safety")[0].domain == load_prompts(f"{path}#safety")[0].domain == "safety"
    assert load_preferences(path)[0].domain == "helpfulness" and untagged(f"{path}#safety") == str(path)
    with pytest.raises(InputError, match=r"after # comes helpfulness or safety, or .*, got 'safe'"):
        load_preferences(f"{path}#safe")
    odd = tmp_path / "a#b.jsonl"
    write_rows(odd, [{"prompt": Q}])
    assert len(load_prompts(odd)) == 1


def test_no_layout_hides_another_of_more_fields():
    """Where a layout needs all fields of another and more, it is tried first."""
    for place, one in enumerate(FORMATS):
        for earlier in FORMATS[:place]:
            assert not (earlier.needs < one.needs and earlier.when is None), (earlier.name, one.name)


def test_rows_in_succession_and_anywhere():
    rows = [{"prompt": p, "response": r, "helpfulness": h} for p, r, h in (("x", "1", 1), ("x", "2", 2), ("y", "3", 3))]
    assert [(n, len(item)) for n, item in gathered(enumerate([*rows, rows[0]], 1), "preferences")] == [
        (1, 2),
        (3, 1),
        (4, 1),
    ]
    assert [n for n, _ in gathered(enumerate(rows, 1), None)] == [1, 2, 3]
    assert format_of({"nothing": 1}) is None


def test_every_probe_is_read_or_refused_in_a_sentence(shared_data):
    probes = shared_data.parent / "probes" / "formats"
    if not probes.is_dir():
        pytest.skip("no folder of probes")
    for file in sorted(probes.iterdir()):
        for load in (load_conversations, load_preferences, load_prompts):
            try:
                assert load(file, on_bad_row="skip")
            except InputError as error:
                assert str(file) in str(error) and "\n" not in str(error)
