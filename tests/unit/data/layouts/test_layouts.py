"""Each layout as the hub has it, read as each kind it can be, with every field that changes the meaning honoured."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from layout_rows import (
    ASK,
    BEFORE,
    CALL,
    DIALOGUES,
    FLAT,
    GPT,
    HISTORY,
    HUMAN,
    NO,
    PAIRS,
    SYSTEM,
    YES,
    A,
    B,
    Q,
)

from rlhf.data.formats import FORMATS, conversation_of, format_of, gathered, pairs_of, preference_from, prompt_of
from rlhf.data.loading import load_conversations, load_preferences, load_prompts, untagged
from rlhf.errors import InputError
from rlhf.jsonl import write_rows


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
