"""Bad input gets one sentence with file and line; skipping is counted."""

from __future__ import annotations

import gzip
from collections import Counter

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from rlhf.data.loading import load_conversations, load_preferences, load_prompts, load_texts
from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows

ASK = [{"role": "user", "content": "a ?"}]
GOOD = {"messages": ASK, "chosen": "hi", "rejected": "no"}
SAID = {"role": "assistant", "content": "b"}

BAD_PREFERENCES = {
    "missing field": ({"messages": ASK, "chosen": "hi"}, "rejected: must be a non-empty text, got None"),
    "no prompt": ({"chosen": "hi", "rejected": "no"}, "not a preference; needs messages, chosen and rejected"),
    "unknown format": ({"question": "a"}, "its fields are question"),
    "empty answer": ({**GOOD, "chosen": " "}, "chosen: must be a non-empty text, got ' '"),
    "identical pair": ({**GOOD, "rejected": "hi"}, "the two answers are identical, 'hi'"),
    "role order": (
        {**GOOD, "messages": ASK * 2},
        "message 2 is the user's, but it is the assistant's turn",
    ),
    "ends with the answer": ({**GOOD, "messages": [*ASK, SAID]}, "the last message must be the user's"),
    "unknown role": ({**GOOD, "messages": [{"role": "human", "content": "a"}]}, "has the role 'human'"),
    "unknown strength": ({**GOOD, "strength": "much"}, "strength: must be one of significantly, better"),
    "unknown domain": ({**GOOD, "domain": "math"}, "domain: must be one of helpfulness, safety, got 'math'"),
    "unsafe chosen over safe": ({**GOOD, "chosen_safe": False, "rejected_safe": True}, "an unsafe answer chosen"),
    "label that is no label": ({**GOOD, "chosen_safe": "yes"}, "chosen_safe: must be true, false or null, got 'yes'"),
    "dialogues part early": (
        {"chosen": [*ASK, SAID], "rejected": [{"role": "user", "content": "c ?"}, {**SAID, "content": "d"}]},
        "the two dialogues part before the last answer, at message 1",
    ),
    "dialogues of different length": (
        {"chosen": [*ASK, SAID], "rejected": [*ASK, SAID, *ASK, SAID]},
        "part before the last answer, in their number of messages",
    ),
    "HH without an answer": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a"},
        "rejected: must be messages that end with the assistant's answer",
    ),
}


@pytest.mark.parametrize("case", BAD_PREFERENCES)
def test_a_bad_preference_is_refused_with_file_and_line(tmp_path, case):
    row, sentence = BAD_PREFERENCES[case]
    path = tmp_path / "rows.jsonl"
    write_rows(path, [GOOD, GOOD, row])
    with pytest.raises(InputError) as caught:
        load_preferences(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ") and sentence in message and "\n" not in message


def test_skipping_is_counted_by_reason(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [GOOD, {**GOOD, "rejected": "hi"}, {**GOOD, "chosen": "no"}, {**GOOD, "chosen": ""}])
    skipped = Counter()
    assert len(load_preferences(path, on_bad_row="skip", skipped=skipped)) == 1
    assert skipped == {
        "chosen, rejected: the two answers are identical": 2,
        "chosen: must be a non-empty text": 1,
    }
    assert "skipped 3 of 4 rows: 2 x chosen, rejected: the two answers are identical" in capsys.readouterr().err


def test_nothing_left_after_skipping(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{**GOOD, "rejected": "hi"}])
    with pytest.raises(InputError, match=r"none of its 1 rows can be used: .*identical"):
        load_preferences(tmp_path / "rows.jsonl", on_bad_row="skip")
    with pytest.raises(InputError, match="on_bad_row: must be refuse or skip, got 'ignore'"):
        load_preferences(tmp_path / "rows.jsonl", on_bad_row="ignore")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("r.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', ":3: not valid JSON .Expecting value"),
        ("r.json", '[{"prompt": "a"},\n{"prompt" "b"}]', ":2: not valid JSON"),
        ("r.json", '{"prompt": "a"}', ": must be a JSON array of rows, .*, got {'prompt': 'a'}"),
        ("r.jsonl", '[{"prompt": "a"}]\n', ":1: must be an object with named fields, .* goes into a .json file"),
        ("r.jsonl", '{"prompt": "a", "prompt": "b"}\n', ":1: has the field 'prompt' twice"),
        ("r.json", '[{"messages": [{"role": "user", "role": "a"}]}]', ": has the field 'role' twice"),
        ("r.csv", "prompt,answer,prompt\na,b,c\n", ": has the column 'prompt' twice"),
        ("r.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), ": cannot be read after row 0 .*; save it as UTF-8"),
        ("r.jsonl", "3\n", ":1: must be an object with named fields, got '3'"),
        ("r.jsonl", "", ": is empty"),
        ("r.json", "", ": is empty"),
        ("r.csv", "prompt\n", ": is empty"),
        ("r.csv", "prompt\na,b\n", ":2: has more cells than the header names"),
        ("r.csv", 'prompt\n"a" b\n', ":2: not valid CSV"),
        ("r.parquet", "no parquet", ": not a readable parquet file"),
        ("r.doc", "x", ": cannot tell its format"),
        ("r.jsonl", b'{"prompt": "\xff"}\n', ": cannot be read after row 0"),
        ("r.jsonl.gz", b"no gzip", ": cannot be read after row 0 .Not a gzipped file.*; fetch it again"),
    ],
)
def test_an_unreadable_file_is_refused(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "#safety"])
def test_an_empty_name_is_not_the_working_folder(name):
    with pytest.raises(InputError, match="rows: an empty name; name a file"):
        load_prompts(name)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_compressed_file_is_read_whole_or_refused(tmp_path, suffix, compress):
    path = tmp_path / f"r.txt{suffix}"
    lines = "".join(f"{i} {i**9 % 10007}\n" for i in range(9000)).encode()
    whole = compress(lines)
    path.write_bytes(whole + compress(b"one more\n"))
    assert len(load_prompts(path)) == 9001
    for cut in (whole[: len(whole) // 2], whole[:-3], compress(b"one more\n") + whole[:-3]):
        path.write_bytes(cut)
        with pytest.raises(InputError, match=r"cannot be read after row \d+ \(Compressed file ended"):
            load_prompts(path)


def test_columns_that_python_cannot_hold_are_named(tmp_path):
    file = tmp_path / "r.parquet"
    ask = pa.array(["a"])
    for column in (pa.array([2**60], pa.timestamp("us")), pa.array([2**62], pa.duration("s"))):
        parquet.write_table(pa.table({"prompt": ask, "at": column}), file)
        with pytest.raises(InputError, match=r"a value of its column 'at' cannot be read .* leave that column out"):
            load_prompts(file)
    parquet.write_table(pa.Table.from_arrays([ask, ask], names=["prompt", "prompt"]), file)
    with pytest.raises(InputError, match="has the column 'prompt' twice; leave one out"):
        load_prompts(file)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none\.jsonl: there is no such file"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="neither an existing file nor a hub name"):
        load_prompts("no such thing")
    import datasets

    def load(*args, **kwargs):
        raise ConnectionError("offline\nnow")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"org/name:test: `datasets` cannot load it \(offline now"):
        load_prompts("org/name:test")

    def old(*args, **kwargs):
        raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

    monkeypatch.setattr(datasets, "get_dataset_config_names", old)
    with pytest.raises(InputError, match="is a script; name the hub's copy: org/name/part@refs/convert/parquet"):
        load_prompts("org/name/part:test")
    with pytest.raises(InputError, match="cannot tell its format"):
        next(read_rows(tmp_path))


def test_bad_rows_of_the_other_kinds(tmp_path):
    path = tmp_path / "r.jsonl"
    for row, load, sentence in [
        ({"text": "  "}, load_texts, "text: must be a non-empty text"),
        ({"body": "x"}, load_texts, "the row's fields are body"),
        ({"body": "x"}, load_prompts, "not a prompt; needs messages, prompt or text; its fields are body"),
        ({"prompt": ""}, load_prompts, "message 1 .user. must have a non-empty text"),
        ({"messages": ASK}, load_conversations, "the last message must be the assistant's"),
        ({"prompt": "x"}, load_conversations, "not a conversation; needs messages, or prompt and completion"),
    ]:
        write_rows(path, [row])
        with pytest.raises(InputError, match=f"r.jsonl:1: .*{sentence}"):
            load(path)


def test_two_prompts_with_one_id(tmp_path):
    write_rows(tmp_path / "r.jsonl", [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}])
    with pytest.raises(InputError, match="the id 'a' stands at 2 prompts"):
        load_prompts(tmp_path / "r.jsonl")
